"""The training step: one pure function of (state, batch), sharded by `jax.jit`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vae.checkpoints.config import ENHANCER, PRIOR
from vae.checkpoints.modules import join_variables, make_model
from vae.metrics import to_float
from vae.models.enhancer import SHARPENING, TONE
from vae.models.posterior import Posterior
from vae.models.tone import WITHIN
from vae.training.augment import augment, mask_squares
from vae.training.flow import flow_loss
from vae.training.losses import objective_terms
from vae.training.optimizer import learning_rate_schedule, make_optimizer
from vae.training.pairs import make_pairs, make_view_pairs
from vae.training.randomness import step_key
from vae.training.sharding import batch_sharding, replicated
from vae.training.state import TrainState

# The running latent statistics forget with this factor a step, once they have seen enough.
LATENT_DECAY = 0.99
# A latent channel counts as active above this variance of its posterior mean (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01


def make_train_step(
    config: ConfigDict, mesh: Mesh, state_sharding: TrainState
) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles nothing yet; returns `step(state, batch) -> (state, metrics)`.

    Args:
      config: The run's.
      mesh: Of axes ("data", "fsdp").
      state_sharding: The sharding of every leaf of the state.

    Returns:
      A jitted function. `state` is donated; `batch` is uint8 [batch_size, S, S, 3] sharded over
      the whole mesh, or [batch_size, S, S, 6] where the masked tiles that the encoder sees come
      along; for an Enhancer a dict with such an `image`, `view` uint8 [batch_size, V, V, 3] and
      `place` float32 [batch_size, 3]; for a LatentFlow what `vae.training.flow` makes of tiles.
      Metrics are replicated scalars, and vectors [C] by latent channel.
    """
    model, architecture = make_model(config), config.model.architecture
    optimizer = make_optimizer(config)
    schedule = learning_rate_schedule(config)
    beta, ssim_weight = config.loss.beta, config.loss.ssim_weight
    data = config.data
    rates = {
        TONE: config.optimizer.tone_multiplier,
        SHARPENING: config.optimizer.sharpening_multiplier,
    }

    def reconstruct(variables, seen, draw):
        # Statistics over a batch that is sharded are those of the whole batch: XLA adds them up.
        posterior, updated = model.apply(
            variables, seen, train=True, method="encode", mutable=["batch_stats"]
        )
        image = model.apply(variables, draw(posterior), method="decode")
        return image, posterior, updated.get("batch_stats", {})

    def enhance(variables, seen, draw):
        params = dict(variables["params"])
        for stage, rate in rates.items():
            if rate == 0 and stage in params:
                params[stage] = jax.lax.stop_gradient(params[stage])
        variables = {**variables, "params": params}
        return *model.apply(variables, *seen, draw, method="restore"), {}

    def tone(variables, seen, draw):
        toned = model.apply(variables, *seen, method="tone_in_training")
        return jnp.where(WITHIN, toned, seen[0]), nobody(seen), {}

    def sharpen(variables, seen, draw):
        # What comes to it has been toned; what it should add to that is what blur has taken, and
        # what the tone stage has got wrong is not its to mend.
        toned = jax.lax.stop_gradient(model.apply(variables, *seen, method="tone"))
        sharp = model.apply(variables, toned, seen[-1], method="sharpen")
        return seen[0] + (sharp - toned), nobody(seen), {}

    def nobody(seen):
        # No latent takes part.
        blank = jnp.zeros((seen[0].shape[0], 1, 1, config.model.latent_channels))
        return Posterior(blank, blank)

    forward = enhance if architecture == ENHANCER else reconstruct
    forward = tone if config.train.views else sharpen if config.train.sharpening else forward

    def elbo_loss(params, fixed, batch_stats, example, rows, key):
        seen, x = example
        variables = join_variables(params, fixed, batch_stats)
        image, posterior, batch_stats = forward(
            variables, seen, lambda posterior: posterior.sample_rows(key, rows)
        )
        log_scale = model.apply(variables, method="log_scale")
        terms = objective_terms(x, image, log_scale, posterior, config.loss.likelihood)
        mean, channels = posterior.mean, posterior.mean.shape[-1]
        metrics = {
            "nll": terms.nll.mean(),
            "kl": terms.kl.mean(),
            "bits_per_dim": terms.bits_per_dim().mean(),
            "ssim": terms.ssim.mean(),
            "mse": jnp.square(x - image).mean(),
            "posterior_std": jnp.exp(0.5 * posterior.log_var).mean(),
            "kl_channel": posterior.kl_map().reshape(len(x), -1, channels).sum(axis=1).mean(axis=0),
            "latent_mean": mean.reshape(-1, channels).mean(axis=0),
            "latent_square": jnp.square(mean).reshape(-1, channels).mean(axis=0),
        }
        loss = terms.loss(beta, ssim_weight, config.loss.per).mean()
        return loss, (metrics, batch_stats)

    loss_fn = flow_loss(config, model) if architecture == PRIOR else elbo_loss

    def examples(step, batch, rows):
        """(what the model sees, what it should give) of tiles as they were read."""
        if architecture == PRIOR:
            return batch
        augment_key = step_key(config.seed, "augment", step)
        if architecture == ENHANCER:
            around = batch["view"], batch["place"], augment_key, rows, config
            pairs = (
                make_view_pairs(*around)
                if config.train.views
                else make_pairs(batch["image"], *around)
            )
            return (pairs.seen, pairs.view, pairs.place), pairs.clean
        images = augment(batch, augment_key, rows, data.crop, data.augment, data.scales)
        # The target, and behind it, where tiles come in pairs, what the encoder sees of it.
        target, seen = images[..., :3], images[..., -3:]
        if config.train.mask == "squares":
            seen = mask_squares(seen, step_key(config.seed, "mask", step), rows)
        return to_float(seen), to_float(target)

    def gradients(state, batch):
        """Loss, metrics, batch statistics and gradient, in `accumulate` parts one by one."""
        size, parts = config.batch_size, config.train.accumulate
        sample_key = step_key(config.seed, "posterior", state.step)
        grad = jax.value_and_grad(loss_fn, has_aux=True)

        def part(batch_stats, batch, rows):
            # Picking scales hides from XLA that these are cut by rows, and it would cut what
            # follows otherwise.
            example = jax.lax.with_sharding_constraint(
                examples(state.step, batch, rows), batch_sharding(mesh)
            )
            (loss, (metrics, stats)), grads = grad(
                state.params, state.fixed, batch_stats, example, rows, sample_key
            )
            return stats, (loss, metrics, grads)

        rows = jnp.arange(size)
        if parts == 1:
            return part(state.batch_stats, batch, rows)
        # Every part takes each `parts`-th row, so that each device keeps its own rows.
        cut = lambda a: a.reshape(size // parts, parts, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731

        def add(carry, piece):
            stats, total = carry
            stats, new = part(stats, *piece)
            return (stats, jax.tree.map(jnp.add, total, new)), None

        pieces = jax.tree.map(cut, (batch, rows))
        first = jax.tree.map(lambda a: a[0], pieces)
        shapes = jax.eval_shape(part, state.batch_stats, *first)[1]
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        (stats, total), _ = jax.lax.scan(add, (state.batch_stats, zeros), pieces)
        return stats, jax.tree.map(lambda a: a / parts, total)

    def step(state: TrainState, batch: jax.Array | dict[str, jax.Array]):
        batch_stats, (loss, metrics, grads) = gradients(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        t = state.step.astype(jnp.float32)
        ema_params = None
        if state.ema_params is not None:
            decay = jnp.minimum(config.train.ema_decay, (1 + t) / (10 + t))
            ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)

        latents = {}
        if architecture != PRIOR:
            latents = _latent_statistics(state, metrics)
            metrics |= {
                "psnr": 10 * jnp.log10(4.0 / metrics.pop("mse")),
                "log_scale": model.apply(
                    join_variables(params, state.fixed, batch_stats), method="log_scale"
                ),
                "latent_std": jnp.sqrt(jnp.mean(latents["latent_var"])),
                "active_units": jnp.sum(latents["latent_var"] > ACTIVE_VARIANCE),
            }
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            batch_stats=batch_stats,
            **latents,
        )
        return new_state, metrics

    return jax.jit(
        step,
        in_shardings=(state_sharding, batch_sharding(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )


def _latent_statistics(state: TrainState, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The running mean and variance of latents, with this batch's, taken out of its metrics."""
    mean, square = metrics.pop("latent_mean"), metrics.pop("latent_square")
    t = state.step.astype(jnp.float32)
    keep = jnp.minimum(LATENT_DECAY, t / (1 + t))
    # Within the batches, and between them: the law of total variance.
    spread = square - jnp.square(mean) + keep * jnp.square(mean - state.latent_mean)
    return {
        "latent_mean": keep * state.latent_mean + (1 - keep) * mean,
        "latent_var": keep * state.latent_var + (1 - keep) * spread,
    }
