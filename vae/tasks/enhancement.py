"""Enhancement task of `configs/enhance256.py`: restores degraded photographs."""

import dataclasses

import jax
import jax.numpy as jnp

from vae.checkpoints.config import AUTOENCODER_KL
from vae.checkpoints.loading import load_saved
from vae.models.autoencoder import LINEAR
from vae.models.enhancer import SHARPENING, TONE
from vae.models.pairs import make_pairs, make_thumbnail_pairs
from vae.models.posterior import Posterior
from vae.models.tone import WITHIN
from vae.multihost import say
from vae.sharding import put_batch
from vae.tasks.elbo import ElboTask, check_loss
from vae.tasks.linear_initialization import check_linear_model, fit_linear, training_tiles
from vae.tasks.randomness import step_key
from vae.tasks.task import Feed, check_crops, check_reach, read_batches

STAGES = ("all", TONE, SHARPENING, "detail")


class Enhancement(ElboTask):
    """Trains an enhancer to restore artificially degraded tiles."""

    evaluates_checkpoint = True

    def rate_factor(self, part):
        """Returns 0 for stages that `train.stage` freezes, and a separate linear-path factor."""
        stage = part if part in (TONE, SHARPENING) else "detail"
        if self.config.train.stage not in ("all", stage):
            return 0.0
        return self.config.optimizer.linear_multiplier if part == LINEAR else 1.0

    def check(self, problems):
        """Implements `vae.tasks.task.Task.check`."""
        config = self.config
        check_loss(config, problems)
        check_crops(config, problems)
        problems.choice("train.stage", config.train.stage, STAGES)
        problems.positive(config, "train.thumbnail_draws")
        balance = self.config.data.balance
        problems.require(0 <= balance <= 1, f"data.balance={balance} must lie in [0, 1]")
        for section in ("cameras", "degrade"):
            for key, value in config[section].items():
                problems.require(0 <= value <= 1, f"{section}.{key}={value} must lie in [0, 1]")
        if problems:
            return
        check_reach(config, problems)
        check_linear_model(config, problems)
        low, high = config.model.tone_evidence
        problems.require(
            0 <= low < high,
            f"model.tone_evidence={config.model.tone_evidence} must be two rising grey levels",
        )

    # ---- Initialization -------------------------------------------------------------------------

    def fit_initialization(self, dataset):
        """Fits the linear codec."""
        return fit_linear(self.config, training_tiles(self.config, dataset))

    def from_saved(self, saved):
        """Takes the saved variables; from an autoencoder, not the last layer and the likelihood."""
        if saved.config.model.architecture == AUTOENCODER_KL:
            params = dict(saved.variables["params"])
            del params["log_scale"]
            params["decoder"] = {k: v for k, v in params["decoder"].items() if k != "head"}
            saved = dataclasses.replace(saved, variables={**saved.variables, "params": params})
        return super().from_saved(saved)

    # ---- Steps ----------------------------------------------------------------------------------

    def feed(self, dataset, mesh, start):
        """Feeds tiles with the thumbnails and FOV circles of their photographs."""
        balance = self.config.data.balance
        batches = read_batches(self.config, dataset, mesh, start, context=True, balance=balance)

        def to_device(batch, step):
            return put_batch(
                mesh, {name: batch[name] for name in ("image", "thumbnail", "fov_circle")}
            )

        return Feed(batches, to_device)

    def example(self, batch, rows, step):
        """Returns (degraded tiles, thumbnails, FOV circles) as input, and clean tiles as target."""
        key = step_key(self.config.seed, "augment", step)
        common = batch["thumbnail"], batch["fov_circle"], key, rows, self.config
        if self.config.train.stage == TONE:
            pairs = make_thumbnail_pairs(*common)
        else:
            pairs = make_pairs(batch["image"], *common)
        return (pairs.degraded, pairs.thumbnail, pairs.circle), pairs.clean

    def forward(self, variables, seen, draw):
        """Applies the stages that `train.stage` selects."""
        stage = self.config.train.stage
        if stage == TONE:
            return self._tone(variables, seen)
        if stage == SHARPENING:
            return self._sharpen(variables, seen)
        if stage == "detail":
            frozen = {TONE, SHARPENING}
            params = {
                part: jax.lax.stop_gradient(leaves) if part in frozen else leaves
                for part, leaves in variables["params"].items()
            }
            variables = {**variables, "params": params}
        return *self.model.apply(variables, *seen, draw, method="restore"), {}

    def _tone(self, variables, seen):
        toned = self.model.apply(variables, *seen, method="tone_in_training")
        return jnp.where(WITHIN, toned, seen[0]), self._no_posterior(seen), {}

    def _sharpen(self, variables, seen):
        # The stage is trained on the frozen output of the tone stage. Only its change is added to
        # the input, so it does not learn to correct errors of the tone stage.
        toned = jax.lax.stop_gradient(self.model.apply(variables, *seen, method="tone"))
        sharp = self.model.apply(variables, toned, seen[-1], method="sharpen")
        return seen[0] + (sharp - toned), self._no_posterior(seen), {}

    def _no_posterior(self, seen) -> Posterior:
        blank = jnp.zeros((seen[0].shape[0], 1, 1, self.config.model.latent_channels))
        return Posterior(blank, blank)

    # ---- Evaluation -----------------------------------------------------------------------------

    def evaluate(self, variables, step, dataset, mesh, workdir, log):
        """Restores degraded photographs of `eval.split`."""
        from vae.evaluation.enhancement import quick_scores

        settings = self.config.eval
        scores = quick_scores(load_saved(workdir), dataset, settings.split, settings.limit)
        log.write(step, {f"eval_{name}": value for name, value in scores.items()})
        say(
            f"step {step}  {settings.split}, degraded: {scores['psnr_before']:.2f} -> "
            f"{scores['psnr']:.2f} dB, SSIM {scores['ssim_before']:.4f} -> "
            f"{scores['ssim']:.4f}, clean {scores['ssim_clean']:.4f}  "
            f"({scores['photographs']} photographs)"
        )

    def report(self, variables, step, dataset, mesh, workdir):
        """Writes the table of degradations for the newest checkpoint, on one process."""
        from vae.evaluation.enhancement import evaluate_enhancer

        saved = load_saved(workdir)  # on all processes: its arrays may be distributed over them
        if jax.process_index() == 0:
            evaluate_enhancer(saved, dataset, split=self.config.eval.split, out=workdir)


TASK = Enhancement
