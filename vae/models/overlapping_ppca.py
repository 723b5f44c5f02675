"""Overlapping PPCA: the optimal linear convolutional VAE of images, fitted from second moments.

PCA treats every f x f patch separately, which costs quality at patch borders. A linear codec whose
kernels cover K x K patches is a lapped transform (Malvar and Staelin, 1989). The upper bound for
such codecs is the principal component filter bank (Tsatsanis and Giannakis, 1995): on fundus
photographs it is 0.7 to 1.9 dB above PCA of the same latent size. The ELBO of a linear VAE depends
only on the mean and the covariance of the data. The fit therefore sums up the spectra of patches in
one pass over the images, and then maximises the ELBO by a quasi-Newton method in whitened
coordinates, which takes seconds.
"""

import dataclasses
from collections.abc import Iterable

import flax.struct
import jax
import numpy as np
import scipy.linalg
import scipy.optimize

from vae.data.progress import progress
from vae.models.pca import PCA, QUANTISATION_STD

# Side of the spectral windows in patches; sufficient for kernels of 5 x 5 patches.
WINDOW = 16
ITERATIONS = 60


@flax.struct.dataclass
class OverlappingPPCA:
    """A linear codec whose kernels cover K x K patches; K = 1 is PCA.

    Attributes:
      analysis: float32 [K, K, f*f*3, C], maps patches to latents in units of the image.
      synthesis: float32 [K, K, C, f*f*3], maps latents to patches.
      log_var: float32 [C], log-variance of each latent's posterior in units of PCA's `sd`.
      scale: float32 [], root mean squared residual per value.
    """

    analysis: jax.Array
    synthesis: jax.Array
    log_var: jax.Array
    scale: jax.Array


def from_pca(pca: PCA) -> OverlappingPPCA:
    """Converts PCA to a codec without overlap (K = 1)."""
    return OverlappingPPCA(
        analysis=pca.components[None, None],
        synthesis=pca.components.T[None, None],
        log_var=pca.log_var(),
        scale=pca.scale,
    )


def fit_overlapping_ppca(
    batches: Iterable[np.ndarray], pca: PCA, kernel: int, beta: float = 1.0
) -> OverlappingPPCA:
    """Fits the linear VAE with kernels over `kernel` x `kernel` patches, starting from PCA.

    Args:
      batches: Images, uint8 [B, H, W, 3]; H and W are divisible by f and at least `kernel` * f.
      pca: PCA fit to the same images, with f x f patches.
      kernel: K, odd.
      beta: Weight of the KL divergence in the ELBO, positive.

    Returns:
      The codec after at most `ITERATIONS` steps towards a maximum of the ELBO of a Gaussian process
      with the images' second moments; image borders are ignored.

    Raises:
      ValueError: The kernel is even, there are no images, or they are smaller than the kernel.
    """
    if kernel % 2 == 0:
        raise ValueError(f"the side of a kernel must be odd, got {kernel}")
    if kernel == 1:
        return from_pca(pca)
    problem = _Problem.of(patch_spectra(batches, pca, kernel), pca, kernel, beta)
    bounds = [(None, None)] * (problem.start.size - 1) + [(np.log(QUANTISATION_STD), None)]
    with progress("fitting the linear codec", ITERATIONS, "step") as advance:
        found = scipy.optimize.minimize(
            problem.loss_and_gradient,
            problem.start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            callback=lambda unknowns: advance(1),
            options={"maxiter": ITERATIONS, "maxcor": 20},
        )
    return problem.codec(found.x)


@dataclasses.dataclass(frozen=True)
class Spectra:
    """Second moments of patches by spatial frequency.

    Attributes:
      density: complex128 [F, P, P], Hermitian spectral densities on half of the frequency plane.
      weights: float64 [F], weight of each frequency in a mean over the whole plane.
      shifts: complex128 [F, K*K], phase factors of shifts to each patch of the kernel.
    """

    density: np.ndarray
    weights: np.ndarray
    shifts: np.ndarray


def patch_spectra(batches: Iterable[np.ndarray], pca: PCA, kernel: int) -> Spectra:
    """Averages the spectra of patches over tapered windows of up to `WINDOW` patches a side.

    Args:
      batches: See `fit_overlapping_ppca`.
      pca: Gives the patch side and the mean patch.
      kernel: K, side of the kernel in patches, for `Spectra.shifts`.

    Raises:
      ValueError: There are no images, or they are smaller than the kernel.
    """
    f, mean = pca.downsample, np.asarray(pca.mean)
    size, count, total, side = mean.size, 0, None, 0
    for images in batches:
        b, rows, columns = len(images), images.shape[1] // f, images.shape[2] // f
        if total is None:
            side = min(WINDOW, rows, columns)
            if side < kernel:
                raise ValueError(
                    f"a kernel of {kernel} x {kernel} patches of {f} pixels does not fit into "
                    f"images of {images.shape[1]} x {images.shape[2]}"
                )
            total = np.zeros((side * (side // 2 + 1), size, size), np.complex128)
            taper = np.sqrt(np.hanning(side + 2)[1:-1])
            taper = np.outer(taper, taper)[..., None] / np.mean(taper**2)
            taper = taper.astype(np.float32)
        patches = images.reshape(b, rows, f, columns, f, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, rows, columns, size).astype(np.float32) / 127.5 - 1 - mean
        for y in range(0, rows - side + 1, side):
            for x in range(0, columns - side + 1, side):
                window = patches[:, y : y + side, x : x + side] * taper
                waves = np.fft.rfft2(window, axes=(1, 2)).astype(np.complex64) / side
                waves = np.ascontiguousarray(waves.reshape(b, -1, size).transpose(1, 2, 0))
                total += waves @ waves.conj().swapaxes(1, 2)
                count += b
    if not count:
        raise ValueError("no images to fit the linear codec to")
    # Adds the variance of 8-bit rounding, so that constant images have no singular covariance.
    density = total / count + QUANTISATION_STD**2 * np.eye(size)
    down, across = np.meshgrid(np.arange(side), np.arange(side // 2 + 1), indexing="ij")
    # rfft2 omits mirror images: columns other than 0 and side / 2 represent two frequencies.
    weights = np.where((across == 0) | (2 * across == side), 1.0, 2.0).ravel()
    reach = np.arange(kernel) - kernel // 2
    angle = 2j * np.pi / side
    shifts = np.exp(
        angle
        * (down.ravel()[:, None, None] * reach[:, None] + across.ravel()[:, None, None] * reach)
    )
    return Spectra(density, weights / weights.sum(), shifts.reshape(weights.size, -1))


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The negative ELBO per value as a function of one real vector of unknowns.

    Latents are in units of the image, like PCA's before the division by `sd`. The unknowns are
    whitened by Cholesky factors of the covariances that the kernels act on, which makes the loss
    nearly isotropic.
    """

    spectra: Spectra
    sd: np.ndarray
    kernel: int
    beta: float
    total: float
    analysis_factor: np.ndarray
    synthesis_factor: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, spectra: Spectra, pca: PCA, kernel: int, beta: float) -> "_Problem":
        components = np.asarray(pca.components, np.float64)
        traces = np.trace(spectra.density, axis1=1, axis2=2).real
        latents = components.T @ spectra.density @ components
        analysis_factor = np.linalg.cholesky(_covariance(spectra, spectra.density))
        synthesis_factor = np.linalg.cholesky(_covariance(spectra, latents))
        size, channels = components.shape
        analysis = np.zeros((channels, kernel**2, size))
        synthesis = np.zeros((size, kernel**2, channels))
        analysis[:, kernel**2 // 2], synthesis[:, kernel**2 // 2] = components.T, components
        start = np.concatenate(
            [
                (analysis.reshape(channels, -1) @ analysis_factor).ravel(),
                (synthesis.reshape(size, -1) @ synthesis_factor).ravel(),
                [np.log(pca.scale)],
            ]
        )
        sd = np.asarray(pca.sd, np.float64)
        total = float(spectra.weights @ traces)
        return cls(spectra, sd, kernel, beta, total, analysis_factor, synthesis_factor, start)

    def kernels(self, unknowns: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Returns analysis [C, K*K, P], synthesis [P, K*K, C] and log s."""
        channels, cut = self.sd.size, self.sd.size * len(self.analysis_factor)
        analysis = _solve(self.analysis_factor, unknowns[:cut].reshape(channels, -1), "T")
        size = analysis.shape[1] // self.kernel**2
        synthesis = _solve(self.synthesis_factor, unknowns[cut:-1].reshape(size, -1), "T")
        return (
            analysis.reshape(channels, -1, size),
            synthesis.reshape(size, -1, channels),
            float(unknowns[-1]),
        )

    def signal(self, synthesis: np.ndarray, log_s: float) -> np.ndarray:
        """Returns |d_k|^2 / (beta s^2) of every latent, float64 [C]."""
        return np.sum(synthesis**2, axis=(0, 1)) * self.sd**2 * np.exp(-2 * log_s) / self.beta

    def loss_and_gradient(self, unknowns: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the loss in nats per value, without constants, and its gradient.

        With the optimal posterior variance v_k = 1 / (1 + |d_k|^2 / (beta s^2)) of each latent, the
        negative ELBO of a patch is

            R / 2s^2 + P log s + beta sum_k [E z_k^2 + log(1 + |d_k|^2 / (beta s^2))] / 2

        where R is the squared error of the mean, d_k the image of latent k, and P the patch size.
        """
        spectra, weights = self.spectra, self.spectra.weights[:, None, None]
        analysis, synthesis, log_s = self.kernels(unknowns)
        size, precision = len(synthesis), np.exp(-2 * log_s)
        waves_in = np.tensordot(spectra.shifts, analysis, (1, 1))  # [F, C, P]
        waves_out = np.tensordot(spectra.shifts, synthesis, (1, 1))  # [F, P, C]
        seen = waves_in @ spectra.density
        latents = seen @ waves_in.conj().swapaxes(1, 2)
        gram = waves_out.conj().swapaxes(1, 2) @ waves_out
        error = self.total + np.sum(
            weights[:, 0, 0]
            * (
                np.einsum("fij,fji->f", gram, latents).real
                - 2 * np.einsum("fpc,fcp->f", waves_out, seen).real
            )
        )
        power = np.einsum("f,fcc->c", spectra.weights, latents).real / self.sd**2
        signal = self.signal(synthesis, log_s)
        rate = 0.5 * np.sum(power + np.log1p(signal))
        loss = 0.5 * error * precision + size * log_s + self.beta * rate

        to_seen = waves_out.conj().swapaxes(1, 2) @ spectra.density
        slope_in = precision * (gram @ seen - to_seen)
        slope_in += seen * (self.beta / self.sd**2)[:, None]
        slope_out = precision * (waves_out @ latents - seen.conj().swapaxes(1, 2))
        back = spectra.shifts.conj() * spectra.weights[:, None]
        slope_analysis = np.tensordot(back, slope_in, (0, 0)).real  # [K*K, C, P]
        slope_synthesis = np.tensordot(back, slope_out, (0, 0)).real.transpose(1, 0, 2)
        slope_synthesis += synthesis * (self.sd**2 * precision / (1 + signal))
        slope_log_s = -error * precision + size - self.beta * np.sum(signal / (1 + signal))
        gradient = np.concatenate(
            [
                _solve(
                    self.analysis_factor,
                    slope_analysis.transpose(1, 0, 2).reshape(self.sd.size, -1),
                    "N",
                ).ravel(),
                _solve(self.synthesis_factor, slope_synthesis.reshape(size, -1), "N").ravel(),
                [slope_log_s],
            ]
        )
        return loss / size, gradient / size

    def codec(self, unknowns: np.ndarray) -> OverlappingPPCA:
        """Returns the kernels in the layout of convolutions."""
        analysis, synthesis, log_s = self.kernels(unknowns)
        signal = self.signal(synthesis, log_s)
        grid = (self.kernel, self.kernel)
        analysis, synthesis = analysis.transpose(1, 2, 0), synthesis.transpose(1, 2, 0)
        return OverlappingPPCA(
            analysis=analysis.reshape(*grid, *analysis.shape[1:]).astype(np.float32),
            synthesis=synthesis.reshape(*grid, *synthesis.shape[1:]).astype(np.float32),
            log_var=-np.log1p(signal).astype(np.float32),
            scale=np.float32(np.exp(log_s)),
        )


def _covariance(spectra: Spectra, density: np.ndarray) -> np.ndarray:
    """Returns the covariance of K x K neighbouring n-vectors, float64 [K*K*n, K*K*n]."""
    n, places = density.shape[-1], spectra.shifts.shape[1]
    covariance = np.empty((places, n, places, n))
    flat = density.reshape(len(density), -1)
    weighted = spectra.shifts * spectra.weights[:, None]
    for k in range(places):
        lags = (weighted[:, k, None] * spectra.shifts.conj()).T @ flat
        covariance[k] = lags.real.reshape(places, n, n).transpose(1, 0, 2)
    covariance = covariance.reshape(places * n, places * n)
    # In short windows neighbouring patches may be linearly dependent up to rounding.
    ridge = 1e-6 * np.trace(covariance) / len(covariance)
    return covariance + ridge * np.eye(len(covariance))


def _solve(factor: np.ndarray, rows: np.ndarray, trans: str) -> np.ndarray:
    """Returns rows @ factor^-1 ("T") or rows @ factor^-T ("N") for a lower triangular factor."""
    return scipy.linalg.solve_triangular(
        factor, rows.T, lower=True, trans=trans, check_finite=False
    ).T
