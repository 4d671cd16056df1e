// Products and eigenpairs of dense matrices. Eigen's templates for these are most of what a build takes, so they are
// compiled once for each scalar, here, and called everywhere else.
#pragma once

#include <Eigen/Core>

namespace markovlm {

template <class T>
using Columns = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;  // column-major
template <class T>
using ColumnsRef = Eigen::Ref<Columns<T>>;
template <class T>
using ConstColumnsRef = Eigen::Ref<const Columns<T>>;

// C += factor A B and C += factor Aᵀ B. What lies row by row is given as its transpose; otherwise it would be copied.
void add_product(ColumnsRef<double> C, const ConstColumnsRef<double>& A, const ConstColumnsRef<double>& B,
                 double factor = 1);
void add_product(ColumnsRef<float> C, const ConstColumnsRef<float>& A, const ConstColumnsRef<float>& B,
                 float factor = 1);
void add_adjoint_product(ColumnsRef<double> C, const ConstColumnsRef<double>& A, const ConstColumnsRef<double>& B,
                         double factor = 1);
void add_adjoint_product(ColumnsRef<float> C, const ConstColumnsRef<float>& A, const ConstColumnsRef<float>& B,
                         float factor = 1);

template <class A, class B>
Columns<typename A::Scalar> product(const A& a, const B& b) {
    Columns<typename A::Scalar> c = Columns<typename A::Scalar>::Zero(a.rows(), b.cols());
    add_product(c, a, b);
    return c;
}
template <class A, class B>
Columns<typename A::Scalar> adjoint_product(const A& a, const B& b) {
    Columns<typename A::Scalar> c = Columns<typename A::Scalar>::Zero(a.cols(), b.cols());
    add_adjoint_product(c, a, b);
    return c;
}

// Of a symmetric matrix: falling eigenvalues, and orthonormal eigenvectors. NaN where none were found.
struct Eigenpairs {
    Eigen::VectorXd values;
    Eigen::MatrixXd vectors;
};
Eigenpairs eigenpairs(const ConstColumnsRef<double>& symmetric);

}  // namespace markovlm
