"""SSIM and PSNR against scikit-image, with and without masks."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vae import metrics

# Float32 against float64: small variances (1e-4 and less) are differences of larger numbers.
TOLERANCE = 1e-5


def _images(seed=0, shape=(3, 40, 33, 3), noise=20):
    """Returns smooth 8-bit images and noisy copies."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape[1:3])
    phase = rng.uniform(0, 6, (shape[0], 1, 1, shape[3]))
    smooth = np.sin(rows[None, ..., None] / 7 + phase) * np.cos(columns[None, ..., None] / 5)
    clean = np.round(128 + 90 * smooth)
    noisy = np.clip(np.round(clean + rng.normal(0, noise, shape)), 0, 255)
    return clean.astype(np.uint8), noisy.astype(np.uint8)


def _reference_map(a, b):
    """Returns scikit-image's map [H-10, W-10, C] at valid positions, for images over [0, 1]."""
    _, full = structural_similarity(
        a / 255, b / 255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=1, channel_axis=-1, full=True,
    )  # fmt: skip
    return full[5:-5, 5:-5]


@pytest.mark.parametrize("noise", [0, 1, 20, 90])
def test_ssim_map_matches_scikit_image(noise):
    a, b = _images(noise=noise)
    ours = np.asarray(metrics.ssim_map(a / 255.0, b / 255.0))
    for i in range(len(a)):
        np.testing.assert_allclose(ours[i], _reference_map(a[i], b[i]), atol=2 * TOLERANCE)


def test_ssim_of_dark_flat_and_bright_images_matches_scikit_image():
    levels = np.array([0, 3, 250, 255], np.uint8)
    a = np.broadcast_to(levels[:, None, None, None], (4, 16, 16, 3))
    b = np.clip(a.astype(int) + np.random.default_rng(0).integers(-2, 3, a.shape), 0, 255)
    b = b.astype(np.uint8)
    ours = np.asarray(metrics.ssim(a / 255.0, b / 255.0))
    reference = [_reference_map(x, y).mean() for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ours, reference, atol=TOLERANCE)


def test_masked_ssim_averages_windows_wholly_inside():
    a, b = _images()
    mask = np.random.default_rng(1).random(a.shape[:3]) < 0.998
    mask[1] = True
    ours = np.asarray(metrics.masked_ssim(a / 255.0, b / 255.0, jnp.asarray(mask)))
    for i in range(len(a)):
        windows = np.lib.stride_tricks.sliding_window_view(mask[i], (11, 11)).all((2, 3))
        assert windows.any()
        expected = _reference_map(a[i], b[i])[windows].mean()
        assert ours[i] == pytest.approx(expected, abs=TOLERANCE)
        np.testing.assert_array_equal(metrics.window_inside(mask[i : i + 1])[0], windows)


def test_pixels_outside_the_mask_do_not_matter():
    a, b = _images()
    mask = np.zeros(a.shape[:3], bool)
    mask[:, 5:30, 4:28] = True
    other = np.where(mask[..., None], b, 255 - b)
    for metric, scale in ((metrics.masked_ssim, 255.0), (metrics.masked_psnr, 1.0)):
        np.testing.assert_array_equal(
            metric(a / scale, b / scale, mask), metric(a / scale, other / scale, mask)
        )


def test_masked_psnr_matches_scikit_image():
    a, b = _images()
    mask = np.random.default_rng(2).random(a.shape[:3]) < 0.5
    ours = np.asarray(metrics.masked_psnr(a, b, mask))
    for i in range(len(a)):
        expected = peak_signal_noise_ratio(a[i][mask[i]], b[i][mask[i]], data_range=255)
        assert ours[i] == pytest.approx(expected, abs=1e-3)


def test_equal_images_have_finite_psnr():
    a, _ = _images()
    whole = np.ones(a.shape[:3], bool)
    expected = 20 * np.log10(255) + 40
    np.testing.assert_allclose(metrics.masked_psnr(a, a, whole), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.masked_ssim(a / 255.0, a / 255.0, whole), 1, atol=1e-6)


def test_empty_masks_give_nan():
    a, b = _images()
    mask = np.zeros(a.shape[:3], bool)
    mask[1, 3:13, :] = True  # pixels, but no whole window
    ssim = np.asarray(metrics.masked_ssim(a / 255.0, b / 255.0, mask))
    psnr = np.asarray(metrics.masked_psnr(a, b, mask))
    np.testing.assert_array_equal(np.isnan(ssim), [True, True, True])
    np.testing.assert_array_equal(np.isnan(psnr), [True, False, True])


def test_too_small_images_are_refused():
    small = jnp.zeros((1, 10, 40, 3))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        metrics.ssim_map(small, small)


def test_every_level_survives_the_round_trip_through_floats():
    levels = np.arange(256, dtype=np.uint8)
    floats = metrics.to_float(jnp.asarray(levels))
    assert floats.dtype == jnp.float32
    assert (float(floats[0]), float(floats[-1])) == (-1.0, 1.0)
    np.testing.assert_array_equal(metrics.to_uint8(floats), levels)
    np.testing.assert_array_equal(metrics.to_uint8(jnp.array([-1.2, 1.2])), [0, 255])
