"""Probabilistic PCA with overlap: the best linear convolutional codec of images, found at once.

PCA sees every f x f patch by itself and pays for it at their borders. A linear codec whose kernels
reach over K x K patches is a lapped transform (Malvar and Staelin, 1989); the bound on what such
codecs can do is the principal component filter bank (Tsatsanis and Giannakis, 1995), on fundus
photographs 0.7 to 1.9 dB above PCA of the same latent size. Means and covariances are all
that a linear VAE depends on, so its ELBO is maximised here without a pass over images for each
step: the spectra of the patches are summed up once, and a quasi-Newton method in whitened
coordinates takes seconds.
"""

import dataclasses
from collections.abc import Iterable

import flax.struct
import jax
import numpy as np
import scipy.linalg
import scipy.optimize

from vae.models.pca import PCA, QUANTISATION_STD

# Spectra are taken over windows of so many patches a side: enough for kernels of 5 x 5 patches.
WINDOW = 16
ITERATIONS = 60


@flax.struct.dataclass
class OverlappingPPCA:
    """A linear codec whose kernels reach over K x K patches; K = 1 is PCA.

    Attributes:
      analysis: float32 [K, K, f*f*3, C], patches to latents in units of the image.
      synthesis: float32 [K, K, C, f*f*3], latents to patches.
      log_var: float32 [C], of the posterior of each latent in units of PCA's `sd`.
      scale: float32 [], root mean squared residual of a value.
    """

    analysis: jax.Array
    synthesis: jax.Array
    log_var: jax.Array
    scale: jax.Array


def from_pca(pca: PCA) -> OverlappingPPCA:
    """PCA as a codec without overlap."""
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
      batches: Images, uint8 [B, H, W, 3], sides divisible by f and at least `kernel` times it.
      pca: The fit to the same images, with patches of f x f.
      kernel: K, odd.
      beta: Price of the KL divergence in the ELBO, positive.

    Returns:
      The fit: a maximum of the ELBO for a Gaussian process of the images' second moments, as far as
      `ITERATIONS` steps go; borders are left out of account.

    Raises:
      ValueError: An even kernel, no images, or images smaller than the kernel.
    """
    if kernel % 2 == 0:
        raise ValueError(f"a kernel has its patch in the middle, so it is odd, got {kernel}")
    if kernel == 1:
        return from_pca(pca)
    problem = _Problem.of(patch_spectra(batches, pca, kernel), pca, kernel, beta)
    bounds = [(None, None)] * (problem.start.size - 1) + [(np.log(QUANTISATION_STD), None)]
    found = scipy.optimize.minimize(
        problem.loss_and_gradient,
        problem.start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": ITERATIONS, "maxcor": 20},
    )
    return problem.codec(found.x)


@dataclasses.dataclass(frozen=True)
class Spectra:
    """Second moments of the patches around a point, by spatial frequency.

    Attributes:
      density: complex128 [F, P, P], Hermitian; half of the plane of frequencies.
      weights: float64 [F], of each frequency in a mean over the plane.
      shifts: complex128 [F, K*K], what a shift to each patch of the kernel multiplies by.
    """

    density: np.ndarray
    weights: np.ndarray
    shifts: np.ndarray


def patch_spectra(batches: Iterable[np.ndarray], pca: PCA, kernel: int) -> Spectra:
    """Sums up the spectra of images' patches over tapered windows of `WINDOW` patches a side.

    Args:
      batches: As for `fit_overlapping_ppca`.
      pca: Gives the patch side and the mean patch.
      kernel: K, patches a side that shifts are wanted for.

    Raises:
      ValueError: No images, or images smaller than the kernel.
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
    # Rounding to 8 bits is noise in every direction; constant images have no other.
    density = total / count + QUANTISATION_STD**2 * np.eye(size)
    down, across = np.meshgrid(np.arange(side), np.arange(side // 2 + 1), indexing="ij")
    # All columns but the first, and the last of an even number, stand for their mirror image too.
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
    """The negative ELBO a value as a function of one vector of real numbers.

    Latents are in units of the image, as PCA's are before they are divided by `sd`; the unknowns
    are whitened by the Cholesky factors of the covariances that the kernels act on, where the loss
    is nearly round.
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
        """-> analysis [C, K*K, P], synthesis [P, K*K, C], log s."""
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
        """|d_k|^2 / (beta s^2) of every latent: float64 [C]."""
        return np.sum(synthesis**2, axis=(0, 1)) * self.sd**2 * np.exp(-2 * log_s) / self.beta

    def loss_and_gradient(self, unknowns: np.ndarray) -> tuple[float, np.ndarray]:
        """Nats a value, without constants, and the gradient.

        With the noise v_k of every latent at its best, v_k = 1 / (1 + |d_k|^2 / (beta s^2)), the
        negative ELBO of a patch is

            R / 2s^2 + P log s + beta sum_k [E z_k^2 + log(1 + |d_k|^2 / (beta s^2))] / 2

        R the squared error from the mean, d_k the image of latent k, P values.
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
        """The kernels as convolutions take them."""
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
    """Of the kernel's K x K vectors with this spectral density: float64 [K*K*n, K*K*n]."""
    n, places = density.shape[-1], spectra.shifts.shape[1]
    covariance = np.empty((places, n, places, n))
    flat = density.reshape(len(density), -1)
    weighted = spectra.shifts * spectra.weights[:, None]
    for k in range(places):
        lags = (weighted[:, k, None] * spectra.shifts.conj()).T @ flat
        covariance[k] = lags.real.reshape(places, n, n).transpose(1, 0, 2)
    covariance = covariance.reshape(places * n, places * n)
    # Windows are short, so that neighbouring patches may look dependent to the last digit.
    ridge = 1e-6 * np.trace(covariance) / len(covariance)
    return covariance + ridge * np.eye(len(covariance))


def _solve(factor: np.ndarray, rows: np.ndarray, trans: str) -> np.ndarray:
    """rows @ factor^-1 ("T") or rows @ factor^-T ("N") for a lower triangular factor."""
    return scipy.linalg.solve_triangular(
        factor, rows.T, lower=True, trans=trans, check_finite=False
    ).T
