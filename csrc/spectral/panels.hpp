// What the eigensolver is told and asked: panels of columns, and functions of them.
#pragma once

#include "base/types.hpp"

#include <Eigen/Core>

#include <functional>

namespace markovlm {

using Matrix = Eigen::MatrixXd;  // (n, m) column-major
using Vector = Eigen::VectorXd;
using MatrixRef = Eigen::Ref<const Matrix>;

// Y = M X for an operator of n by n: the only thing that is known of it. Y comes with the shape of X.
using ApplyPanel = std::function<void(const Matrix& X, Matrix& Y)>;
using DrawPanel = std::function<Matrix(Index columns)>;  // fresh independent normal numbers, (n, columns)

}  // namespace markovlm
