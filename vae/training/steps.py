"""The training step: one pure function of (state, batch), sharded by `jax.jit`."""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vae.metrics import to_float
from vae.training.augment import augment
from vae.training.losses import objective_terms
from vae.training.optimizer import learning_rate_schedule, make_optimizer
from vae.training.sharding import batch_sharding, replicated
from vae.training.state import TrainState, make_model

# The running latent statistics forget with this factor a step, once they have seen enough.
LATENT_DECAY = 0.99
# A latent channel counts as active above this variance of its posterior mean (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01


def step_key(seed: int, duty: str, step: jax.Array) -> jax.Array:
    """The key of one duty at one step: adding a duty never shifts the others' randomness."""
    key = jax.random.key(seed)
    # Python's hash differs between processes; crc32 does not.
    key = jax.random.fold_in(key, zlib.crc32(duty.encode()))
    return jax.random.fold_in(key, step)


def make_train_step(
    config: ConfigDict, mesh: Mesh, state_sharding: TrainState
) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles nothing yet; returns `step(state, images) -> (state, metrics)`.

    Args:
      config: The run's.
      mesh: Of axes ("data", "fsdp").
      state_sharding: The sharding of every leaf of the state.

    Returns:
      A jitted function. `state` is donated; `images` is uint8 [batch_size, S, S, 3] sharded over
      the whole mesh; metrics are replicated scalars, and vectors [C] by latent channel.
    """
    model = make_model(config)
    optimizer = make_optimizer(config)
    schedule = learning_rate_schedule(config)
    beta, ssim_weight = config.loss.beta, config.loss.ssim_weight

    def loss_fn(params, fixed, x, rows, key):
        variables = {"params": params, **fixed}
        posterior = model.apply(variables, x, method="encode")
        z = posterior.sample_rows(key, rows)
        image = model.apply(variables, z, method="decode")
        log_scale = model.apply(variables, method="log_scale")
        terms = objective_terms(x, image, log_scale, posterior, config.loss.likelihood)
        mean = posterior.mean
        metrics = {
            "nll": terms.nll.mean(),
            "kl": terms.kl.mean(),
            "bits_per_dim": terms.bits_per_dim().mean(),
            "ssim": terms.ssim.mean(),
            "mse": jnp.square(x - image).mean(),
            "posterior_std": jnp.exp(0.5 * posterior.log_var).mean(),
            "kl_channel": posterior.kl_map().sum(axis=(1, 2)).mean(axis=0),
            "latent_mean": mean.mean(axis=(0, 1, 2)),
            "latent_square": jnp.square(mean).mean(axis=(0, 1, 2)),
        }
        return terms.loss(beta, ssim_weight).mean(), metrics

    def gradients(state, images):
        """Loss, metrics and gradient of the batch, in `accumulate` parts one after the other."""
        size, parts = images.shape[0], config.train.accumulate
        sample_key = step_key(config.seed, "posterior", state.step)
        augment_key = step_key(config.seed, "augment", state.step)

        def part(images, rows):
            images = augment(images, augment_key, rows, config.data.crop, config.data.augment)
            grad = jax.value_and_grad(loss_fn, has_aux=True)
            return grad(state.params, state.fixed, to_float(images), rows, sample_key)

        rows = jnp.arange(size)
        if parts == 1:
            return part(images, rows)
        # Every part takes each `parts`-th row, so that each device keeps its own rows.
        cut = lambda a: a.reshape(size // parts, parts, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
        total, _ = jax.lax.scan(
            lambda total, piece: (jax.tree.map(jnp.add, total, part(*piece)), None),
            jax.tree.map(
                lambda a: jnp.zeros(a.shape, a.dtype),
                jax.eval_shape(part, images[: size // parts], rows[: size // parts]),
            ),
            (cut(images), cut(rows)),
        )
        return jax.tree.map(lambda a: a / parts, total)

    def step(state: TrainState, images: jax.Array):
        (loss, metrics), grads = gradients(state, images)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        t = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.train.ema_decay, (1 + t) / (10 + t))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)

        mean, square = metrics.pop("latent_mean"), metrics.pop("latent_square")
        keep = jnp.minimum(LATENT_DECAY, t / (1 + t))
        latent_mean = keep * state.latent_mean + (1 - keep) * mean
        # Within the batches, and between them: the law of total variance.
        spread = square - jnp.square(mean) + keep * jnp.square(mean - state.latent_mean)
        latent_var = keep * state.latent_var + (1 - keep) * spread
        metrics |= {
            "loss": loss,
            "psnr": 10 * jnp.log10(4.0 / metrics.pop("mse")),
            "log_scale": model.apply({"params": params, **state.fixed}, method="log_scale"),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
            "latent_std": jnp.sqrt(jnp.mean(latent_var)),
            "active_units": jnp.sum(latent_var > ACTIVE_VARIANCE),
        }
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            latent_mean=latent_mean,
            latent_var=latent_var,
        )
        return new_state, metrics

    return jax.jit(
        step,
        in_shardings=(state_sharding, batch_sharding(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )
