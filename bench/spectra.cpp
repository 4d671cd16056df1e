// Spectra's solver behind a C function, for spectrum.py: k largest eigenpairs of a product that is called back.
#include <Eigen/Core>
#include <Spectra/SymEigsSolver.h>

#include <algorithm>

using Product = void (*)(const double* x, double* y);

struct Operator {
    using Scalar = double;
    Eigen::Index n;
    Product product;

    Eigen::Index rows() const { return n; }
    Eigen::Index cols() const { return n; }
    void perform_op(const double* x, double* y) const { product(x, y); }
};

// values (k,), vectors (n, k) column-major; returns the number of eigenvalues that converged.
extern "C" int largest(int n, int k, int basis, double tolerance, Product product, double* values, double* vectors) {
    Operator op{n, product};
    Spectra::SymEigsSolver<Operator> solver(op, k, basis);
    solver.init();
    const auto converged = solver.compute(Spectra::SortRule::LargestAlge, 1000, tolerance);
    const Eigen::VectorXd found = solver.eigenvalues();
    std::copy_n(found.data(), found.size(), values);
    const Eigen::MatrixXd of = solver.eigenvectors();
    std::copy_n(of.data(), of.size(), vectors);
    return static_cast<int>(converged);
}
