"""FundusVAE compared with the PyTorch module: layers, evaluation, training, full size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae.models import FundusVAE, Posterior, published
from vae.models.published import ToImage, images_at_once, linear
from vae.models.resnet import BatchNorm, Bottleneck, conv, max_pool
from vae.models.winograd import winograd
from vae.tasks.losses import objective_terms

torch = pytest.importorskip("torch")

from torch_twin import images, nchw, nhwc, trained_like, without_prefix  # noqa: E402

from benchmarks.published_loss import published_loss  # noqa: E402
from vae.convert_torch_checkpoint import convert, torch_module  # noqa: E402
from vae.convert_torch_checkpoint.table import table  # noqa: E402

SMALL = FundusVAE(
    latent_size=6, image_size=64, width=4, stages=(2, 1, 1, 1), head=(24, 16), decoder_width=40
)
# Float32 sums in another order through about twenty layers, relative to a layer's largest value.
TOLERANCE = 2e-5


def ours(twin, model):
    state = without_prefix(twin)
    convert.check("twin", state, model)
    leaves = convert.converted("twin", state, model)
    return convert.nested({entry.path: jnp.array(array) for entry, array in leaves})


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(model, variables, x, train=False):
    return model.apply(variables, x, train=train, method="encode")


def assert_close(a, b, tolerance=TOLERANCE, name=""):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, name
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.fixture(scope="module")
def small():
    twin = trained_like(SMALL)
    return twin, ours(twin, SMALL)


@pytest.mark.parametrize("side", [15, 16])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(7, 2), (3, 1), (3, 2), (1, 1), (1, 2)])
def test_convolution(size, stride, train, side):
    theirs = torch.nn.Conv2d(3, 5, size, stride, padding=size // 2, bias=False)
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    kernel = theirs.weight.detach().numpy().transpose(2, 3, 1, 0)
    layer = conv(5, size, stride, jnp.float32, None, train)
    assert_close(layer.apply({"params": {"kernel": kernel}}, x), nhwc(theirs(nchw(x))))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 3), (2, 4, 7, 5), (3, 13, 6, 8), (1, 32, 32, 128), (2, 16, 16, 256)]
)
def test_winograd(shape):
    """Every remainder by the tile size, and the published widths, after a ReLU."""
    rng = np.random.default_rng(0)
    channels = shape[-1]
    x = np.maximum(rng.normal(size=shape), 0).astype(np.float32)
    kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (3, 3, channels, 7)).astype(np.float32)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    exact = np.einsum("bhwcij,ijck->bhwk", windows, kernel, optimize=True)
    # Twice the largest observed error, 2.4e-6; a plain float32 sum is within 1e-6.
    assert_close(jax.jit(winograd)(x, kernel), exact, 5e-6)
    gradient = jax.jit(jax.grad(lambda kernel: jnp.square(winograd(x, kernel)).sum()))(kernel)
    expected = np.einsum("bhwcij,bhwk->ijck", windows, 2 * exact, optimize=True)
    assert_close(gradient, expected)


def test_parts_of_a_batch_equal_the_batch(small, monkeypatch):
    x = 2 * images(6, 64) - 1
    whole = encode(SMALL, small[1], x)
    assert images_at_once(6, 64) == 6
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    at_once = [images_at_once(batch, 256) for batch in (1, 2, 6, 7, 16)]
    assert at_once == [1, 2, 3, 1, 4]
    monkeypatch.setattr(published, "PIXELS_AT_ONCE", 2 * 64**2)
    assert images_at_once(6, 64) == 2 and images_at_once(6, 512) == 1
    parts = jax.jit(lambda v, x: SMALL.apply(v, x, method="encode"))(small[1], x)
    assert_close(parts.mean, whole.mean)
    assert_close(parts.log_var, whole.log_var)


@pytest.mark.parametrize("side", [15, 16])
def test_max_pooling(side):
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    theirs = nchw(x).requires_grad_()
    out = torch.nn.MaxPool2d(3, stride=2, padding=1)(theirs)
    weights = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    out.backward(nchw(weights))
    ours, pullback = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(ours, nhwc(out))
    assert_close(pullback(weights)[0], nhwc(theirs.grad))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (6, 1), (8, 2)])
def test_bottleneck(inputs, stride, train):
    """One bottleneck on an odd side, with and without a projection shortcut; its statistics."""
    torch.manual_seed(0)
    theirs = torch_module.Bottleneck(inputs, 2, stride).train(train)
    assert (theirs.downsample is None) == (inputs == 8 and stride == 1)
    variables = {"params": {}, "batch_stats": {}}
    names = {"downsample.0": "downsample_conv", "downsample.1": "downsample_bn"}
    for name, module in theirs.named_modules():
        path = names.get(name, name)
        if isinstance(module, torch.nn.Conv2d):
            kernel = module.weight.detach().numpy().transpose(2, 3, 1, 0)
            variables["params"][path] = {"kernel": kernel}
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -1), (module.running_mean, -1)):
                tensor.data.uniform_(low, low + 2)
            module.running_var.uniform_(0.3, 3)
            weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
            variables["params"][path] = {"scale": weight, "bias": bias}
            mean, var = module.running_mean.numpy().copy(), module.running_var.numpy().copy()
            variables["batch_stats"][path] = {"mean": mean, "var": var, "count": np.int32(0)}
    x = np.random.default_rng(0).normal(size=(3, 9, 9, inputs)).astype(np.float32)
    block = Bottleneck(2, stride, jnp.float32)
    got, updated = block.apply(variables, x, train, mutable=["batch_stats"])
    assert_close(got, nhwc(theirs(nchw(x))))
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            stats = updated["batch_stats"][names.get(name, name)]
            assert_close(stats["mean"], module.running_mean)
            assert_close(stats["var"], module.running_var)
            assert stats["count"] == module.num_batches_tracked == int(train)


@pytest.mark.parametrize("train", [False, True])
def test_every_layer(small, train):
    """Stem, max pooling, all bottlenecks, and both heads."""
    twin, variables = small
    twin = trained_like(SMALL).train(train)
    outputs = {}
    for name, module in twin.autoencoder.named_modules():
        # A copy, because the following ReLU works in place.
        module.register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update({name: output.clone()})
        )
    x = images(8, 64)
    mean, log_var = twin.encode(nchw(x))
    reconstruction = twin.decode(mean)

    def both(module, x):
        posterior = module.encode(x, train=train)
        return posterior, module.decode(posterior.mean)

    (posterior, image), captured = SMALL.apply(
        variables,
        2 * x - 1,
        method=both,
        capture_intermediates=True,
        mutable=["intermediates", "batch_stats"],
    )
    pairs = {e.source.rpartition(".")[0]: e.path.split("/")[1:-1] for e in table(SMALL)}
    for stage, depth in enumerate(SMALL.stages, start=1):
        for block in range(depth):
            pairs[f"encoder.layer{stage}.{block}"] = ["encoder", f"layer{stage}_{block}"]
    last = "decoder.6"
    outputs[last] = outputs[last].view(-1, 3, 64, 64)
    for source, path in pairs.items():
        got = captured["intermediates"]
        for part in path:
            got = got[part]
        theirs = outputs[source]
        theirs = nhwc(theirs) if theirs.ndim == 4 else theirs.detach()
        assert_close(got["__call__"][0], theirs, name=source)
    assert len(pairs) == 2 + 5 * 7 + 4 * 2 + 3 + 4
    assert_close(posterior.mean, mean.detach())
    assert_close(posterior.log_var, log_var.detach())
    assert_close((image + 1) / 2, nhwc(reconstruction))
    if train:
        state = without_prefix(twin)
        for entry in table(SMALL):
            if entry.path.startswith("batch_stats/"):
                got = captured
                for part in entry.path.split("/"):
                    got = got[part]
                assert_close(got, state[entry.source], name=entry.source)
                assert np.abs(got - np.asarray(state[entry.source])).max() < 1e-3


def test_one_step_of_training(small):
    """Loss, gradients, statistics and parameters agree for the same weights and noise."""
    variables = small[1]
    twin = trained_like(SMALL).train()
    x, rate = images(8, 64, seed=1), 1e-3
    noise = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)

    target = nchw(x)
    mean, log_var = twin.encode(target)
    sample = mean + torch.exp(0.5 * log_var) * torch.from_numpy(noise)
    theirs = published_loss(target, twin.decode(sample), mean, log_var).mean()
    optimizer = torch.optim.SGD(twin.parameters(), lr=rate)
    theirs.backward()
    gradients = {name: p.grad.clone() for name, p in twin.autoencoder.named_parameters()}
    optimizer.step()

    @jax.jit
    def step(params, stats):
        def loss(params):
            tree = {"params": params, "batch_stats": stats}
            posterior, updated = SMALL.apply(
                tree, 2 * x - 1, train=True, method="encode", mutable=["batch_stats"]
            )
            z = posterior.mean + jnp.exp(0.5 * posterior.log_var) * noise
            image = SMALL.apply(tree, z, method="decode")
            log_scale = SMALL.apply(tree, method="log_scale")
            terms = objective_terms(2 * x - 1, image, log_scale, posterior, "gaussian")
            return terms.loss(1.0, 1.0, "tile").mean(), updated["batch_stats"]

        (value, stats_after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        after = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        return value, stats_after, grads, after

    value, stats, grads, params = step(variables["params"], variables["batch_stats"])
    # The Gaussian density has an additional constant.
    constant = x[0].size * (0.5 * np.log(2 * np.pi) + 0.5 * np.log(2))
    assert abs(float(value) - constant - theirs.item()) < 2e-6 * constant
    state = without_prefix(twin)
    trees = {"params": params, "batch_stats": stats}
    for entry in table(SMALL):
        collection, *path = entry.path.split("/")
        leaf, grad = trees[collection], grads
        for part in path:
            leaf = leaf[part]
        assert_close(leaf, entry.layout.to_flax(state[entry.source].numpy()), name=entry.source)
        if collection == "params":
            for part in path:
                grad = grad[part]
            want = entry.layout.to_flax(gradients[entry.source].numpy())
            error = np.linalg.norm(np.ravel(grad - want)) / np.linalg.norm(np.ravel(want))
            # A ReLU input near zero may be positive in one framework only.
            assert error < 1e-3, f"{entry.source}: {error}"


def test_full_size():
    """The published sizes, with weights of the scale of trained ones."""
    model = FundusVAE()
    twin = trained_like(model, batch=2)
    state = without_prefix(twin)
    assert len(state) == 332
    variables = ours(twin, model)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 432_144_124
    x = images(2, 256)
    with torch.inference_mode():
        mean, log_var = twin.encode(nchw(x))
        reconstruction = nhwc(twin.decode(mean))

    @jax.jit
    def both(variables, x):
        posterior = model.apply(variables, x, method="encode")
        return posterior, model.apply(variables, posterior.mean, method="decode")

    posterior, image = both(variables, 2 * x - 1)
    assert np.ptp(reconstruction) > 0.9 and 0.2 < mean.std() < 5
    np.testing.assert_allclose((image + 1) / 2, reconstruction, rtol=0, atol=1e-4)
    assert_close(posterior.mean, mean, 1e-3)
    assert_close(posterior.log_var, log_var, 1e-3)


def test_variance_far_from_zero_keeps_its_digits():
    x = (1000 + np.random.default_rng(0).normal(size=(8, 4, 4, 1))).astype(np.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, False)
    _, updated = layer.apply(variables, x, True, mutable=["batch_stats"])
    expected = 0.9 + 0.1 * x.astype(np.float64).var(ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="more than one value a channel"):
        layer.apply(variables, x[:1, :1, :1], True, mutable=["batch_stats"])


def test_immutable_statistics_do_not_change(small):
    x = 2 * images(2, 64) - 1
    posterior = encode(SMALL, small[1], x, True)
    assert isinstance(posterior, Posterior)
    assert np.abs(posterior.mean - encode(SMALL, small[1], x).mean).max() > 1e-2


def test_initialization_matches_pytorch():
    key = jax.random.key(0)
    kernel = conv(64, 3, 1, jnp.float32, name=None).init(key, jnp.zeros((1, 4, 4, 8)))["params"]
    assert np.std(kernel["kernel"]) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    for layer in (ToImage(16), linear(512, 64, name=None)):
        for leaf in layer.init(key, jnp.zeros((1, 64)))["params"].values():
            assert np.abs(leaf).max() <= 64**-0.5
            assert np.std(leaf) == pytest.approx((3 * 64) ** -0.5, rel=0.1)
    assert SMALL.tile_size == 64
    assert float(SMALL.log_scale()) == pytest.approx(np.log(2**0.5))


def test_bfloat16_is_close_and_gives_float32_results(small):
    x = 2 * images(2, 64) - 1
    short = encode(SMALL.clone(dtype=jnp.bfloat16), small[1], x)
    assert short.mean.dtype == short.log_var.dtype == jnp.float32
    full = encode(SMALL, small[1], x).mean
    difference = np.abs(short.mean - full).max()
    # Each of sixteen consecutive convolutions rounds to eight bits.
    assert 0 < difference < 16 * 2**-8 * np.abs(full).max()


def test_other_sizes_are_refused(small):
    with pytest.raises(ValueError, match=r"expected images \[B, 64, 64, 3\], got \[1, 32, 32, 3\]"):
        SMALL.apply(small[1], jnp.zeros((1, 32, 32, 3)))


@pytest.mark.usefixtures("eight_devices")
def test_statistics_of_a_sharded_batch_are_those_of_the_whole_batch():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x = np.random.default_rng(0).normal(3, 2, (16, 2, 2, 5)).astype(np.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, False)
    apply = jax.jit(lambda v, x: layer.apply(v, x, True, mutable=["batch_stats"]))
    whole = apply(variables, x)
    split = apply(variables, jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    expected = 0.9 + 0.1 * x.var(axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(split[1]["batch_stats"]["var"], expected, rtol=1e-5)
