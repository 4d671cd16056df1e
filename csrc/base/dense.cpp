#include "base/dense.hpp"

#include <Eigen/Eigenvalues>

#include <limits>

namespace markovlm {

void add_product(ColumnsRef<double> C, const ConstColumnsRef<double>& A, const ConstColumnsRef<double>& B,
                 double factor) {
    C.noalias() += factor * A * B;
}
void add_product(ColumnsRef<float> C, const ConstColumnsRef<float>& A, const ConstColumnsRef<float>& B, float factor) {
    C.noalias() += factor * A * B;
}
void add_adjoint_product(ColumnsRef<double> C, const ConstColumnsRef<double>& A, const ConstColumnsRef<double>& B,
                         double factor) {
    C.noalias() += factor * A.transpose() * B;
}
void add_adjoint_product(ColumnsRef<float> C, const ConstColumnsRef<float>& A, const ConstColumnsRef<float>& B,
                         float factor) {
    C.noalias() += factor * A.transpose() * B;
}

Eigenpairs eigenpairs(const ConstColumnsRef<double>& symmetric) {
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(symmetric);
    if (solver.info() != Eigen::Success)
        return {Eigen::VectorXd::Constant(symmetric.rows(), std::numeric_limits<double>::quiet_NaN()),
                Eigen::MatrixXd::Identity(symmetric.rows(), symmetric.cols())};
    return {solver.eigenvalues().reverse(), solver.eigenvectors().rowwise().reverse()};
}

}  // namespace markovlm
