// The passes of the core against plain loops in double, over tail sizes, types and threads: for sanitisers, and for
// CPUs that Python's tests do not reach. A wrong lane, tail or tile shows here; how exact the passes are is what pytest
// holds them to, with derived bounds.
#include "base/cpu_level.hpp"
#include "base/parallel.hpp"
#include "finite/ordered_output.hpp"
#include "finite/sparse_product.hpp"
#include "fixed_point_tests.hpp"
#include "jensen_shannon_tests.hpp"
#include "metric_tests.hpp"
#include "panel_tests.hpp"
#include "softmax/stats.hpp"
#include "spectral_tests.hpp"

#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <stdexcept>
#include <string>

using namespace markovlm;

namespace {

int failures = 0, checks = 0;

void check(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

void check_near(double got, double exact, double size, const std::string& what) {
    const bool same = std::isinf(exact) ? got == exact : std::abs(got - exact) <= 2e-5 * (1.0 + size);
    check(same, what + ": " + std::to_string(got) + ", exact " + std::to_string(exact));
}

std::mt19937 generator(1);

float normal() { return std::normal_distribution<float>()(generator); }

BFloat16 to_bfloat16(float x) { return {static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16)}; }

// Rows with room between them, which no pass may read.
template <class T>
struct Matrix {
    std::vector<T> memory;
    MatrixView<T> view;

    Matrix(Index rows, Index cols, float size) : memory(static_cast<std::size_t>(rows * (cols + 3))) {
        for (T& x : memory) x = number(std::numeric_limits<float>::quiet_NaN());
        view = {memory.data(), rows, cols, cols + 3};
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < cols; ++j)
                memory[static_cast<std::size_t>(i * (cols + 3) + j)] = number(size * normal());
    }
    double operator()(Index i, Index j) const { return widen(view.row(i)[j]); }

    static T number(float x) {
        if constexpr (std::is_same_v<T, float>)
            return x;
        else
            return to_bfloat16(x);
    }
};

std::vector<double> softmax(const std::vector<double>& z) {
    const double top = *std::max_element(z.begin(), z.end());
    std::vector<double> p;
    double sum = 0;
    for (double x : z) sum += p.emplace_back(std::exp(x - top));
    for (double& x : p) x /= sum;
    return p;
}

struct Options {
    double scale = 1.0, softcap = 0.0, temperature = 1.0;
    bool bias = false, shared = false;
    int threads = 1;
};

template <class T>
std::vector<std::vector<double>> logits(const Matrix<T>& hidden, const Matrix<T>& weight,
                                        const std::vector<float>& bias, const Options& o) {
    std::vector<std::vector<double>> rows;
    for (Index i = 0; i < hidden.view.rows; ++i) {
        auto& z = rows.emplace_back();
        for (Index w = 0; w < weight.view.rows; ++w) {
            double sum = o.bias ? bias[static_cast<std::size_t>(w)] : 0.0;
            for (Index j = 0; j < hidden.view.cols; ++j) sum += hidden(i, j) * weight(w, j);
            sum *= o.scale;
            if (o.softcap > 0 && !std::isinf(sum)) sum = o.softcap * std::tanh(sum / o.softcap);
            z.push_back(sum / o.temperature);
        }
    }
    return rows;
}

template <class T>
void test_passes(Index n, Index V, Index d, const Options& o, const std::string& name) {
    const float size = 2.0f / std::sqrt(static_cast<float>(d));
    const Matrix<T> hidden(n, d, 1.0f), reference(n, d, 1.0f), weight(V, d, size), other_weight(V, d, size);
    std::vector<float> bias(static_cast<std::size_t>(V));
    for (float& b : bias) b = normal() > 1.0f ? -INFINITY : normal();
    bias[static_cast<std::size_t>(V / 2)] = 0.5f;
    const float* bias_data = o.bias ? bias.data() : nullptr;

    StatsRequest request;
    request.hidden = hidden.view;
    request.head = {weight.view, bias_data, o.scale, o.softcap, o.temperature};
    std::vector<Index> targets, ids;
    for (Index i = 0; i < n; ++i) targets.push_back(i % 5 == 4 ? -1 : (7 * i + 3) % V);
    for (Index i = 0; i < n * 2; ++i) ids.push_back((5 * i + 1) % V);
    request.targets = targets.data();
    request.orders = {0.5, 2.0, -1.0, -INFINITY};
    request.jensen_shannon = true;
    request.top_k = std::min<Index>(V, 3);
    request.token_ids = {ids.data(), n, 2, 2};
    request.reference = reference.view;
    request.reference_head = {o.shared ? weight.view : other_weight.view, bias_data, o.scale, o.softcap, o.temperature};
    using Kind = Divergence::Kind;
    request.divergences = {
        {Kind::kl}, {Kind::variation}, {Kind::jensen_shannon}, {Kind::power, 0.3}, {Kind::power, 2.0}};

    const auto N = static_cast<std::size_t>(n), vocabulary = static_cast<std::size_t>(V);
    const auto k = static_cast<std::size_t>(request.top_k);
    std::vector<double> log_normalizer(N), entropy(N), jensen_shannon(N), nll(N), renyi(4 * N), top_log_probs(k * N),
        log_probs(2 * N), divergences(5 * N), mean(vocabulary);
    std::vector<Index> rank(N), top_ids(k * N);
    StatsResult result;
    result.log_normalizer = log_normalizer.data();
    result.entropy = entropy.data();
    result.jensen_shannon = jensen_shannon.data();
    result.nll = nll.data();
    result.rank = rank.data();
    result.renyi = renyi.data();
    result.top_ids = top_ids.data();
    result.top_log_probs = top_log_probs.data();
    result.log_probs = log_probs.data();
    result.divergences = divergences.data();
    result.mean = mean.data();
    softmax_stats(request, result, o.threads, [](Index) {});

    const auto z = logits(hidden, weight, bias, o), zr = logits(reference, o.shared ? weight : other_weight, bias, o);
    std::vector<double> exact_mean(vocabulary);
    std::vector<std::vector<double>> rows;
    for (std::size_t i = 0; i < N; ++i) {
        const std::string at = name + ", row " + std::to_string(i);
        const std::vector<double> q = softmax(z[i]), p = softmax(zr[i]);
        rows.push_back(q);
        double h = 0, sum_half = 0, sum_two = 0, sum_inverse = 0, least = 1, mixed = 0, kl = 0, tv = 0, js = 0, low = 0,
               high = 0, support = 0;
        for (std::size_t w = 0; w < vocabulary; ++w) {
            exact_mean[w] += q[w] / static_cast<double>(n);
            support += q[w] > 0;
            h -= q[w] > 0 ? q[w] * std::log(q[w]) : 0;
            sum_half += std::sqrt(q[w]);
            sum_two += q[w] * q[w];
            sum_inverse += q[w] > 0 ? 1 / q[w] : 0;
            least = q[w] > 0 ? std::min(least, q[w]) : least;
            mixed += q[w] * (1 + q[w]) * std::log1p(q[w]) - (q[w] > 0 ? q[w] * q[w] * std::log(q[w]) : 0);
            const double m = (p[w] + q[w]) / 2;
            kl += p[w] > 0 ? p[w] * std::log(p[w] / q[w]) : 0;
            tv += std::abs(p[w] - q[w]) / 2;
            js += ((p[w] > 0 ? p[w] * std::log(p[w] / m) : 0) + (q[w] > 0 ? q[w] * std::log(q[w] / m) : 0)) / 2;
            low += std::pow(p[w], 0.3) * std::pow(q[w], 0.7);
            high += q[w] > 0 ? p[w] * p[w] / q[w] : 0;
        }
        const double top = *std::max_element(z[i].begin(), z[i].end());
        const double log_z = top - std::log(*std::max_element(q.begin(), q.end()));
        check_near(log_normalizer[i], log_z, std::abs(log_z), at + " log Z");
        check_near(entropy[i], h, h, at + " entropy");
        check_near(renyi[4 * i], 2 * std::log(sum_half), 5, at + " Renyi 1/2");
        check_near(renyi[4 * i + 1], -std::log(sum_two), 5, at + " Renyi 2");
        check_near(renyi[4 * i + 2], std::log(sum_inverse) / 2, 5, at + " Renyi -1");
        check_near(renyi[4 * i + 3], -std::log(least), 5, at + " Renyi -infinity");
        check_near(jensen_shannon[i], std::log(2) - mixed / 2, 0, at + " Jensen-Shannon");
        const double exact[] = {kl, tv, js, std::log(low), std::log(high)};
        for (std::size_t j = 0; j < 5; ++j)
            check_near(divergences[5 * i + j], exact[j], 5 + std::abs(exact[j]),
                       at + " divergence " + std::to_string(j));
        if (targets[i] >= 0) {
            const double target = z[i][static_cast<std::size_t>(targets[i])];
            check_near(nll[i], log_z - target, 5, at + " NLL");
            Index above = 0, far_above = 0;
            for (double x : z[i]) {
                above += x > target - 1e-4;
                far_above += x > target + 1e-4;
            }
            check(rank[i] >= far_above && rank[i] <= above, at + " rank");
        } else {
            check(std::isnan(nll[i]) && rank[i] == -1, at + " ignored target");
        }
        for (std::size_t j = 0; j < 2; ++j)
            check_near(log_probs[2 * i + j], z[i][static_cast<std::size_t>(ids[2 * i + j])] - log_z, 5, at + " log p");
        std::vector<double> sorted = z[i];
        std::sort(sorted.rbegin(), sorted.rend());
        for (std::size_t j = 0; j < k; ++j) check_near(top_log_probs[k * i + j], sorted[j] - log_z, 5, at + " top");
    }
    for (std::size_t w = 0; w < vocabulary; ++w) check_near(mean[w], exact_mean[w], 0, name + " mean");

    const Matrix<float> x(V, 1 + (n + V) % 7, 1.0f), y(n, 1 + (n + V) % 7, 1.0f);
    PanelRequest panel;
    panel.hidden = hidden.view;
    panel.head = request.head;
    panel.log_normalizer = log_normalizer.data();
    panel.power = 0.5;
    PanelTests(check, check_near).compare(panel, x.view, y.view, rows, o.threads, name);
}

void test_loop() {
    for (int threads : {1, 2, 3, 8}) {
        std::vector<int> seen(1000);
        std::atomic<int> most{0};
        parallel_blocks(
            1000, threads,
            [&](Index block, int worker, const StopToken&) {
                ++seen[static_cast<std::size_t>(block)];
                if (worker > most) most = worker;
            },
            [](Index) {});
        check(std::count(seen.begin(), seen.end(), 1) == 1000, "every block once");
        check(most < threads, "workers are below the number of threads");
        std::string caught;
        try {
            parallel_blocks(
                1000, threads,
                [](Index block, int, const StopToken&) {
                    if (block == 17) throw std::runtime_error("body");
                },
                [](Index) {});
        } catch (const std::runtime_error& error) {
            caught = error.what();
        }
        check(caught == "body", "an exception of a body comes through");
        caught.clear();
        try {
            parallel_blocks(
                4, threads,
                [](Index, int, const StopToken& stop) {
                    while (!stop.requested()) std::this_thread::yield();
                },
                [](Index) { throw std::runtime_error("watch"); });
        } catch (const std::runtime_error& error) {
            caught = error.what();
        }
        check(caught == "watch", "an exception of the watch stops all bodies");
    }
}

// Nothing is expected, so that it grows while other threads copy.
void test_ordered_output(Index blocks, int threads) {
    const auto length = [](Index block) { return block * 37 % 501; };
    OrderedOutput<std::int32_t> output;
    std::vector<Index> first(static_cast<std::size_t>(blocks));
    parallel_blocks(
        blocks, threads,
        [&](Index block, int, const StopToken& stop) {
            const std::vector<std::int32_t> columns(static_cast<std::size_t>(length(block)),
                                                    static_cast<std::int32_t>(block));
            const std::vector<double> values(columns.begin(), columns.end());
            first[static_cast<std::size_t>(block)] =
                output.append(block, columns.data(), values.data(), length(block), stop);
        },
        [](Index) {});
    const Index size = output.size();
    const auto columns = output.columns();
    const auto values = output.values();
    Index at = 0;
    bool same = true;
    for (Index block = 0; block < blocks; ++block) {
        same = same && first[static_cast<std::size_t>(block)] == at;
        for (const Index end = at + length(block); same && at < end; ++at)
            same = columns.data()[at] == block && values.data()[at] == static_cast<double>(block);
    }
    check(same && at == size, "blocks come in their order, with " + std::to_string(threads) + " threads");
}

struct Sparse {
    std::vector<std::int32_t> offsets{0}, columns;
    std::vector<double> values;

    Sparse(Index rows, Index cols, Index per_row) {
        for (Index i = 0; i < rows; ++i) {
            std::vector<Index> row;
            const Index length = std::min<Index>(cols, static_cast<Index>(generator()) % (per_row + 1));
            const Index first = static_cast<Index>(generator()) % (cols - length + 1);
            for (Index q = 0; q < length; ++q)
                row.push_back(i % 3 == 0 ? first + q : static_cast<Index>(generator()) % cols);
            std::sort(row.begin(), row.end());
            row.erase(std::unique(row.begin(), row.end()), row.end());
            columns.insert(columns.end(), row.begin(), row.end());
            offsets.push_back(static_cast<std::int32_t>(columns.size()));
        }
        for (std::size_t p = 0; p < columns.size(); ++p)
            values.push_back(static_cast<double>(static_cast<int>(generator() % 7) - 3));  // their sums are exact
    }
    SparseView<std::int32_t> view() const {
        return {offsets.data(), columns.data(), values.data(), static_cast<Index>(offsets.size()) - 1};
    }
};

void test_sparse_product(Index rows, Index middle, Index cols, Index per_row) {
    const std::string name = "sparse " + std::to_string(rows) + " " + std::to_string(middle) + " " +
                             std::to_string(cols) + " " + std::to_string(per_row);
    const Sparse a(rows, middle, per_row), b(middle, cols, per_row);
    std::vector<std::map<Index, double>> exact(static_cast<std::size_t>(rows));
    std::size_t entries = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        for (auto p = static_cast<std::size_t>(a.offsets[i]); p < static_cast<std::size_t>(a.offsets[i + 1]); ++p) {
            const auto row = static_cast<std::size_t>(a.columns[p]);
            for (auto q = static_cast<std::size_t>(b.offsets[row]); q < static_cast<std::size_t>(b.offsets[row + 1]);
                 ++q)
                exact[i][b.columns[q]] += a.values[p] * b.values[q];
        }
        std::erase_if(exact[i], [](const auto& sum) { return sum.second == 0; });
        entries += exact[i].size();
    }
    for (int threads : {1, 2, 5})
        for (Index largest_narrow : {kLargestNarrow, Index{0}}) {
            const SparseResult result = sparse_product(a.view(), b.view(), cols, threads, [](Index) {}, largest_narrow);
            check(result.index() == (largest_narrow == 0), name + " index type");
            std::visit(
                [&](const auto& got) {
                    bool same = got.entries() == static_cast<Index>(entries);
                    for (std::size_t i = 0, p = 0; same && i < exact.size(); ++i) {
                        same = got.offsets.data()[i] == static_cast<Index>(p);
                        for (const auto& [column, sum] : exact[i]) {
                            same = same && got.columns.data()[p] == column && got.values.data()[p] == sum;
                            ++p;
                        }
                    }
                    check(same, name);
                },
                result);
        }
}

void test_sparse_products(bool thorough) {
    for (int threads : {1, 2, 5}) test_ordered_output(3000, threads);
    for (Index cols : {Index{1}, Index{63}, Index{64}, Index{65}, Index{300}, Index{5000}, kLargestNarrow})
        for (Index per_row : {1, 5, 60})
            for (Index rows : {0, 1, 40}) test_sparse_product(rows, 30, cols, per_row);
    const Index many = thorough ? 6000 : 600;
    test_sparse_product(many, many, many, 4);
    test_sparse_product(many, 300, 300, 100);
    test_sparse_product(many, 300, kLargestNarrow, 20);
    const Sparse a(many, 300, 100), b(300, 300, 100);
    std::string caught;
    try {
        sparse_product(a.view(), b.view(), 300, 2, [](Index) { throw std::runtime_error("watch"); });
    } catch (const std::runtime_error& error) {
        caught = error.what();
    }
    check(caught == "watch", "an exception of the watch stops a sparse product");
}

template <class T>
void test_type(const char* type, bool thorough) {
    const std::vector<Index> tails =
        thorough ? std::vector<Index>{1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33}
                 : std::vector<Index>{1, 7, 16, 33};
    int turn = 0;
    for (Index size : tails)
        for (const auto& [n, V, d] :
             {std::array<Index, 3>{size, 40, 9}, {3, size, 9}, {3, 40, size}, {size, 90 + size, 90 + size}}) {
            ++turn;
            Options o;
            o.bias = turn % 3 == 1;
            o.shared = turn % 2 == 1;
            o.softcap = turn % 4 == 2 ? 3.0 : 0.0;
            o.scale = turn % 5 == 3 ? 0.5 : 1.0;
            o.temperature = turn % 7 == 3 ? 1.5 : 1.0;
            o.threads = 1 + turn % 3;
            test_passes<T>(n, V, d, o,
                           std::string(type) + " n=" + std::to_string(n) + " V=" + std::to_string(V) +
                               " d=" + std::to_string(d) + " options " + std::to_string(turn));
        }
    test_passes<T>(thorough ? 600 : 70, thorough ? 901 : 401, 200, {.threads = 2}, std::string(type) + " large");
}

}  // namespace

// With an argument `quick`: fewer sizes, for slow machines.
int main(int argc, char** argv) {
    runnable_builds();  // asks for the tile registers
    const bool thorough = argc < 2 || std::strcmp(argv[1], "quick") != 0;
    test_loop();
    test_sparse_products(thorough);
    SpectralTests(check).run(thorough);
    FixedPointTests(check).run(thorough);
    JensenShannonTests(check).run(thorough);
    MetricTests(check).run(thorough);
    test_type<float>("float32", thorough);
    test_type<BFloat16>("bfloat16", thorough);
    std::printf("%d checks, %d failures, vectors of %d floats\n", checks, failures, kWidth);
    return failures != 0;
}
