"""How fast, from states and head, are the leading eigenpairs of a similarity, and how right are they?

python bench/spectrum.py [--case smollm2|apply|large|all] [--rounds 3] [--json FILE] [--strict] [--quick]
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg, svds

import markovlm as mk
import models
from harness import RESULTS, Answer, Array, Case, Contender, Row, Target, ask
from markovlm import _factors

TOL = 1e-6  # of residuals, relative to the largest eigenvalue
ROWS, PAIRS, NOTHING = 2**30, 2**28, 140 << 20  # bytes that the operator may take, by what it keeps in them
FEW = 4  # eigenpairs, of solvers that find one after the other
ACCURATE = "scipy eigsh (ARPACK), √P made in float64"
LOOSE = {"eigenvalues": 0.1, "residuals": 0.1}  # whatever they reach is printed


def square_roots(H: torch.Tensor, W: torch.Tensor, size: int = 256) -> Array:
    """√P in float32, some rows at a time, which is faster than all at once."""
    out = torch.empty(len(H), len(W))
    for i in range(0, len(H), size):
        torch.softmax((H[i : i + size] @ W.T).float(), -1, out=out[i : i + size]).sqrt_()
    return np.asarray(out.numpy())


def accurate_square_roots(H: torch.Tensor, W: torch.Tensor, size: int = 256) -> Array:
    """The same from logits in float64: float32 ones put eigenvalues off by more than the tolerance."""
    out, head = torch.empty(len(H), len(W)), W.double().T
    for i in range(0, len(H), size):
        out[i : i + size] = torch.softmax(H[i : i + size].double() @ head, -1).sqrt_()
    return np.asarray(out.numpy())


def gram(H: torch.Tensor, W: torch.Tensor) -> Array:
    """√P √Pᵀ / n in float64, some tokens at a time."""
    h, n = models.wide(H), len(H)
    log_z = np.full(n, -np.inf)
    for i in range(0, len(W), 4096):
        z = h @ models.wide(W[i : i + 4096]).T
        log_z = np.logaddexp(log_z, np.logaddexp.reduce(z, axis=1))
    out = np.zeros((n, n))
    for i in range(0, len(W), 4096):
        root = np.exp((h @ models.wide(W[i : i + 4096]).T - log_z[:, None]) / 2)
        out += root @ root.T
    return out / n


class Products:
    """``F Fᵀ / n`` of single columns and panels, for solvers that ask for these; counted."""

    def __init__(self, F: Array) -> None:
        self.F, self.n = F, len(F)

    def __call__(self, X: Array) -> Array:
        Y = self.F @ (self.F.T @ X.astype(np.float32))
        return np.asarray(Y, np.float64) / self.n

    def operator(self) -> LinearOperator:
        return LinearOperator((self.n, self.n), matvec=self, matmat=self, dtype=np.float64)


class TorchProducts(Products):
    """The same by PyTorch."""

    def __init__(self, F: Array) -> None:
        super().__init__(F)
        self.of_torch = torch.from_numpy(F)

    def __call__(self, X: Array) -> Array:
        x = torch.from_numpy(X.astype(np.float32))
        return np.asarray((self.of_torch @ (self.of_torch.T @ x)).double().numpy() / self.n)


@cache
def spectra() -> Any:
    """Spectra, compiled; None where it or a compiler is missing."""
    folder = tempfile.mkdtemp()
    library = str(Path(folder) / "spectra.so")
    flags = ["-O3", "-std=c++17", "-march=native", "-shared", "-fPIC", "-I/usr/include/eigen3"]
    flags += [f"-I{path}" for path in os.environ.get("SPECTRA_INCLUDE", "").split(os.pathsep) if path]
    source = str(Path(__file__).parent / "spectra.cpp")
    try:
        subprocess.run([os.environ.get("CXX", "c++"), *flags, source, "-o", library], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ctypes.CDLL(library)


def by_spectra(products: Products, k: int) -> tuple[Array, Array]:
    n, pointer = products.n, ctypes.POINTER(ctypes.c_double)
    callback = ctypes.CFUNCTYPE(None, pointer, pointer)

    def product(x: Any, y: Any) -> None:
        np.ctypeslib.as_array(y, (n,))[:] = products(np.ctypeslib.as_array(x, (n,)))

    values, vectors = np.zeros(k), np.zeros((n, k), order="F")
    spectra().largest(
        n,
        k,
        min(n, 2 * k + 1),
        ctypes.c_double(TOL),
        callback(product),
        values.ctypes.data_as(pointer),
        vectors.ctypes.data_as(pointer),
    )
    return values, vectors


def falling(values: Array, vectors: Array) -> tuple[Array, Array]:
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]


def start(n: int, columns: int) -> Array:
    return np.random.default_rng(0).standard_normal((n, columns))


def by_arpack(products: Products, k: int) -> tuple[Array, Array]:
    return falling(*eigsh(products.operator(), k, which="LA", tol=TOL, v0=start(products.n, 1)[:, 0]))


def by_lobpcg(products: Products, k: int) -> tuple[Array, Array]:
    return falling(*lobpcg(products.operator(), start(products.n, k), tol=TOL / 10, maxiter=100, largest=True))


def by_propack(products: Products, k: int) -> tuple[Array, Array]:
    F = products.F
    operator = LinearOperator(
        F.shape,
        matvec=lambda x: F @ x.astype(np.float32),
        rmatvec=lambda y: F.T @ y.astype(np.float32),
        dtype=np.float32,
    )
    U, s, _ = svds(operator, k, solver="propack", tol=1e-5, rng=0, maxiter=20 * k)
    return falling(s.astype(np.float64) ** 2 / products.n, U.astype(np.float64))


def by_gram(products: Products, k: int) -> tuple[Array, Array]:
    n = products.n
    K = (products.F @ products.F.T).astype(np.float64) / n
    return falling(*eigh(K, subset_by_index=[n - k, n - 1], overwrite_a=True))


def by_randomized_svd(products: Products, k: int) -> tuple[Array, Array]:
    from sklearn.utils.extmath import randomized_svd

    U, s, _ = randomized_svd(products.F, k, random_state=0)
    return s.astype(np.float64) ** 2 / products.n, U.astype(np.float64)


def by_svd_lowrank(products: Products, k: int) -> tuple[Array, Array]:
    torch.manual_seed(0)
    U, s, _ = torch.svd_lowrank(torch.from_numpy(products.F), q=k, niter=2)
    return s.double().numpy() ** 2 / products.n, U.double().numpy()


def by_pylanczos(products: Products, k: int) -> tuple[Array, Array]:
    from pylanczos import PyLanczos

    def product(x: Array, y: Array) -> None:
        y[:] = products(x)

    values, vectors = PyLanczos.create_custom(product, products.n, "double", True, min(k, FEW)).run()
    return falling(np.asarray(values), np.asarray(vectors))


PEERS: dict[str, tuple[Callable[[Products, int], tuple[Array, Array]], type[Products], str]] = {
    "scipy eigsh (ARPACK), products by NumPy": (by_arpack, Products, ""),
    "scipy eigsh (ARPACK), products by torch": (by_arpack, TorchProducts, ""),
    ACCURATE: (by_arpack, Products, "the only one of theirs below the tolerance"),
    "scipy lobpcg": (by_lobpcg, Products, ""),
    "scipy svds (PROPACK)": (by_propack, Products, "float32 throughout"),
    "Spectra": (by_spectra, Products, ""),
    "Gram matrix by NumPy, scipy eigh": (by_gram, Products, ""),
    "sklearn randomized_svd": (by_randomized_svd, Products, "few iterations, as by default"),
    "torch svd_lowrank": (by_svd_lowrank, Products, "niter = 2, as by default"),
    f"pylanczos, {FEW} pairs": (by_pylanczos, Products, "finds one pair after the other"),
}


def installed() -> list[str]:
    from importlib.util import find_spec

    missing = {"sklearn": find_spec("sklearn") is None, "Spectra": spectra() is None}
    missing["pylanczos"] = find_spec("pylanczos") is None
    return [name for name in PEERS if not missing.get(name.split()[0].rstrip(","), False)]


def exactly(name: str, H: torch.Tensor, W: torch.Tensor) -> tuple[Array, Array]:
    """√P √Pᵀ / n and its eigenvalues in float64; kept, for the processes that measure memory."""
    path = RESULTS / f"{name}-gram.npz"
    if not path.exists():
        K = gram(H, W)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, K=K, eigenvalues=np.linalg.eigvalsh(K)[::-1])
    kept = np.load(path)
    return kept["K"], kept["eigenvalues"]


def case(title: str, H: torch.Tensor, W: torch.Tensor, k: int) -> Case:
    (n, d), vocabulary = H.shape, len(W)
    kind = str(H.dtype).split(".")[-1]
    K, exact = exactly(f"{title.lower()}-{n}-{kind}", H, W)

    def checked(values: Array, vectors: Array, m: int) -> Answer:
        if m < n:
            return {}
        residuals = np.linalg.norm(K @ vectors - vectors * values, axis=0) / exact[0]
        answer = {"eigenvalues": exact[:k] / exact[0], "residuals": np.zeros(k)}
        answer["eigenvalues"][: len(values)] = values / exact[0]
        answer["residuals"][: len(residuals)] = residuals
        return answer

    def ours(memory: int) -> Callable[[int | None], Answer]:
        def run(m: int | None) -> Answer:
            P = mk.SoftmaxKernel(H[:m], W)
            M = mk.similarity_operator(P, "bhattacharyya", max_memory=memory)
            found = mk.eigsh(M, min(k, M.shape[0] // 4), TOL)
            return checked(found.eigenvalues, found.eigenvectors, M.shape[0])

        return run

    def theirs(name: str) -> Callable[[int | None], Answer]:
        solve, products, _ = PEERS[name]

        def run(m: int | None) -> Answer:
            F = products((accurate_square_roots if name == ACCURATE else square_roots)(H[:m], W))
            return checked(*solve(F, min(k, F.n // 4)), F.n)

        return run

    def roots_alone(m: int | None) -> Answer:
        square_roots(H[:m], W)
        return {}

    accurate = {"eigenvalues": 1e-5, "residuals": 1e-5}  # single precision is in all of them
    names = installed()
    found = [
        Contender("markovlm, rows kept", ours(ROWS), "", tolerance=accurate),
        Contender("markovlm, pairs kept", ours(PAIRS), "", tolerance=accurate),
        Contender("markovlm, rows made anew", ours(NOTHING), "", tolerance=accurate),
        *(Contender(name, theirs(name), PEERS[name][2], tolerance=LOOSE) for name in names),
        Contender("√P alone, by torch", roots_alone, "no eigenpairs"),
    ]

    def judge(table: Sequence[Row], _: Mapping[str, float]) -> list[Target]:
        rows = {row.name: row for row in table}
        mine, pairs = rows["markovlm, rows kept"], rows["markovlm, pairs kept"]
        anew = rows["markovlm, rows made anew"]

        def ratio(start: str) -> float:
            return min(row.median for name, row in rows.items() if name.startswith(start)) / mine.median

        targets = [
            Target("scipy eigsh, the fastest / markovlm", ratio("scipy eigsh"), 5.0, at_least=True),
            Target("scipy eigsh, residuals as small / markovlm", ratio(ACCURATE), 5.0, at_least=True),
            Target("Gram and eigh / markovlm", ratio("Gram"), 1.0, at_least=True),
            Target("torch svd_lowrank / markovlm", ratio("torch svd"), 2.0, at_least=True),
        ]
        if any(name.startswith("sklearn") for name in rows):
            targets.append(Target("randomized_svd / markovlm", ratio("sklearn"), 2.0, at_least=True))
        weighed = [row.extra_mib for name, row in rows.items() if row.extra_mib and not name.startswith("markovlm")]
        for row, what in ((pairs, "pairs kept"), (anew, "rows made anew")):
            if row.extra_mib is not None and weighed:
                share = row.extra_mib / min(weighed)
                targets.append(Target(f"memory, {what}: of the least of theirs", share, 0.25, at_least=False))
        return targets

    return Case(
        title=f"{title}, n = {n:,}, V = {vocabulary:,}, d = {d:,}, k = {k}, {kind}, {torch.get_num_threads()} threads",
        contenders=found,
        rows=np.arange(k),
        reference={"eigenvalues": exact[:k] / exact[0], "residuals": np.zeros(k)},
        tolerance={},
        judge=judge,
        weigh=[contender.name for contender in found],
    )


def smollm2(dtype: str, k: int) -> Case:
    features = models.smollm2()
    hidden, head = models.as_type(dtype, *(torch.from_numpy(np.array(x)) for x in (features.hidden, features.head)))
    return case("SmolLM2-135M", hidden, head, k)


def decaying(n: int, vocabulary: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bfloat16 states whose directions fall off as 1/i, so that the spectrum of similarities decays."""
    H, W, _ = models.random(n, vocabulary, d)
    scales = torch.from_numpy(1.0 / np.arange(1, d + 1, dtype=np.float32))
    return H.mul_(scales * np.sqrt(d) / scales.norm()).bfloat16(), W.bfloat16()


SIZES = {
    "n": [(n, 49_152, 576, 32) for n in (1024, 4096, 16_384)],
    "V": [(2048, V, 576, 32) for V in (8192, 49_152, 256_000)],
    "b": [(2048, 49_152, 576, b) for b in (1, 12, 24, 48, 96)],
}


def exact_product(P: mk.SoftmaxKernel, H: torch.Tensor, W: torch.Tensor, X: Array, rows: Array) -> Array:
    """Some rows of √P √Pᵀ X / n in float64, some tokens and contexts at a time."""
    h, w, log_z = models.wide(H), models.wide(W), mk.softmax_stats(P).log_normalizer[:, None]
    out = np.zeros((len(rows), X.shape[1]))
    for tokens in (slice(i, i + 16_384) for i in range(0, len(w), 16_384)):
        head = w[tokens].T
        of_tokens = np.zeros((head.shape[1], X.shape[1]))
        for part in (slice(i, i + 1024) for i in range(0, len(h), 1024)):
            of_tokens += np.exp((h[part] @ head - log_z[part]) / 2).T @ X[part]
        out += np.exp((h[rows] @ head - log_z[rows]) / 2) @ of_tokens
    return out / len(h)


def apply_case() -> Case:
    """One product of the operator, as sizes grow."""
    found, rows = [], np.arange(8)
    for letter, sizes in SIZES.items():
        for n, V, d, b in sizes:
            H, W, _ = models.random(n, V, d)
            P, X = mk.SoftmaxKernel(H, W), start(n, b)
            exact = exact_product(P, H, W, X, rows)
            with patch.object(_factors, "_MOST_CONTEXTS", 0):  # not pairs
                M = mk.similarity_operator(P, "bhattacharyya", max_memory=min(PAIRS, 4 * n * V - 1))

            def run(_: int | None, M: Any = M, X: Array = X) -> Answer:
                return {"product": M @ X}

            name = f"{letter} = { {'n': n, 'V': V, 'b': b}[letter]:,}"
            allowed = {"product": 1e-4 * float(np.abs(exact).max())}
            work = 2.0 * n * V * (d + 2 * b)
            found.append(Contender(name, run, "", {"product": exact}, allowed, "float32", work))
    return Case(
        title="one product, rows made anew, float32; n = 2,048 or as given, V = 49,152, d = 576, b = 32",
        contenders=found,
        rows=rows,
        reference={},
        tolerance={},
        judge=lambda table, peaks: [
            Target(f"{row.name}: share of the CPU's peak", row.gflops / peaks["float32"], 0.6, at_least=True)
            for row in table
            if "float32" in peaks
        ],
    )


def large() -> Case:
    """A vocabulary of 256,000 and 32,768 contexts, within 2 GiB of working memory."""
    n, V, d, k = 32_768, 256_000, 1024, 16
    H, W = decaying(n, V, d)
    shown = [0.0]

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty() or time.time() - shown[0] > 60:
            shown[0] = time.time()
            print(f"  {done:,} of some {total:,}", file=sys.stderr, flush=True)

    def run(m: int | None) -> Answer:
        M = mk.similarity_operator(mk.SoftmaxKernel(H[:m], W), "bhattacharyya", progress=progress)
        found = mk.eigsh(M, k, TOL, progress=progress)
        print(found, file=sys.stderr)
        return {"residuals": found.residual_norms / found.norm}

    return Case(
        title=f"random states of decaying spectrum, n = {n:,}, V = {V:,}, d = {d:,}, k = {k}, bfloat16",
        contenders=[Contender("markovlm, rows made anew", run, dtype="bfloat16")],
        rows=np.arange(k),
        reference={"residuals": np.zeros(k)},
        tolerance={"residuals": TOL},
        judge=lambda table, _: [
            Target("extra memory, MiB", row.extra_mib, 2048.0, at_least=False)
            for row in table
            if row.extra_mib is not None
        ],
        once=True,
    )


def quick() -> Case:
    return case("random", *models.random(256, 3000, 64)[:2], 8)


CASES: dict[str, Callable[[], Case]] = {
    "smollm2": lambda: smollm2("float32", 64),
    "smollm2-bfloat16": lambda: smollm2("bfloat16", 64),
    "apply": apply_case,
    "large": large,
    "quick": quick,
}

if __name__ == "__main__":
    sys.exit(ask(__doc__.splitlines()[0], __file__, CASES))
