"""Enhancement of degraded photographs: `configs/enhance256.py`."""

import jax
import jax.numpy as jnp

from vae.checkpoints.config import AUTOENCODER_KL
from vae.checkpoints.exported import SavedModel
from vae.checkpoints.modules import abstract_fit, initial_variables
from vae.checkpoints.reading import read_model
from vae.data.errors import DataError
from vae.models import with_autoencoder
from vae.models.autoencoder import LINEAR
from vae.models.enhancer import SHARPENING, TONE
from vae.models.pairs import make_pairs, make_view_pairs
from vae.models.posterior import Posterior
from vae.models.tone import WITHIN
from vae.multihost import say
from vae.sharding import put_batch
from vae.tasks.elbo import ElboTask, check_loss
from vae.tasks.linear_start import check_linear_model, fit_linear, training_tiles
from vae.tasks.randomness import step_key
from vae.tasks.task import Feed, changed, plain, read_batches

_PARTS = ("filters", "sharpening")  # stages that an enhancer may have or lack


class Enhancement(ElboTask):
    """Trains an enhancer to restore tiles that are degraded on purpose."""

    evaluates_checkpoint = True

    @property
    def multipliers(self):
        """One factor for each stage; 0 freezes it."""
        optimizer = self.config.optimizer
        return {
            LINEAR: optimizer.linear_multiplier,
            TONE: optimizer.tone_multiplier,
            SHARPENING: optimizer.sharpening_multiplier,
        }

    def check(self, problems):
        """See `vae.tasks.task.Task.check`."""
        config, data, train = self.config, self.config.data, self.config.train
        check_loss(config, problems)
        problems.not_negative(
            config, "optimizer.tone_multiplier", "optimizer.sharpening_multiplier", "train.views"
        )
        for key, value in config.degrade.items():
            problems.require(0 <= value <= 1, f"degrade.{key}={value} must lie in [0, 1]")
        if problems:
            return
        check_linear_model(config, problems)
        problems.require(not data.on_device, "data.on_device=True is for autoencoders")
        problems.require(
            not (train.mask or data.masked_dir),
            f"train.mask={train.mask!r} and data.masked_dir={data.masked_dir!r} are for learning to"
            " reconstruct",
        )
        problems.require(
            not train.sharpening or config.model.sharpening,
            "train.sharpening=True teaches a part that the model has not; set"
            " model.sharpening=True",
        )
        problems.require(
            not (train.sharpening and train.views),
            f"train.sharpening=True and train.views={train.views} each teach one part alone; drop"
            " one",
        )

    # ---- The start of a run ---------------------------------------------------------------------

    def abstract_start(self):
        """Shapes of the linear fit."""
        return abstract_fit(self.config)

    def find_start(self, dataset):
        """Fits the linear codec."""
        return fit_linear(self.config, training_tiles(self.config, dataset))

    def from_saved(self, saved):
        """An enhancer, with fresh stages where the config asks for more; or an autoencoder."""
        if saved.config.model.architecture == AUTOENCODER_KL:
            return self._around_autoencoder(saved)
        return super().from_saved(self._with_parts(saved))

    def _around_autoencoder(self, saved: SavedModel) -> dict:
        extra = ("tone_width", *_PARTS)
        shared = {k: value for k, value in plain(self.config.model).items() if k not in extra}
        if plain(saved.config.model) != shared | {"architecture": AUTOENCODER_KL}:
            raise DataError(
                f"init_from={self.config.init_from} holds the autoencoder"
                f" {plain(saved.config.model)}, which an enhancer of {shared} cannot start from;"
                " give one of its sizes, or set --config.model to the saved"
            )
        fresh = jax.jit(lambda: initial_variables(self.config))()
        return with_autoencoder(fresh, saved.variables)

    def _with_parts(self, saved: SavedModel) -> SavedModel:
        its, model = saved.config.model, self.config.model
        wanted = {part: True for part in _PARTS if model[part] and not its.get(part, True)}
        if not wanted:
            return saved
        fresh = jax.jit(lambda: initial_variables(self.config))()
        params = {**fresh["params"], **saved.variables["params"]}
        return changed(saved, wanted, {**saved.variables, "params": params})

    # ---- Steps ----------------------------------------------------------------------------------

    def feed(self, dataset, mesh, start):
        """Tiles, the thumbnails of their photographs (`view`), and where they lie (`place`)."""
        batches = read_batches(self.config, dataset, mesh, start, context=True)

        def place(batch, step):
            return put_batch(mesh, {name: batch[name] for name in ("image", "view", "place")})

        return Feed(batches, place)

    def example(self, batch, rows, step):
        """Degraded tiles with their thumbnails and places, and clean tiles as targets."""
        key = step_key(self.config.seed, "augment", step)
        around = batch["view"], batch["place"], key, rows, self.config
        if self.config.train.views:
            pairs = make_view_pairs(*around)
        else:
            pairs = make_pairs(batch["image"], *around)
        return (pairs.seen, pairs.view, pairs.place), pairs.clean

    def forward(self, variables, seen, draw):
        """Runs the stages that are trained."""
        if self.config.train.views:
            return self._tone(variables, seen)
        if self.config.train.sharpening:
            return self._sharpen(variables, seen)
        params = dict(variables["params"])
        for stage in (TONE, SHARPENING):
            if self.multipliers[stage] == 0 and stage in params:
                params[stage] = jax.lax.stop_gradient(params[stage])
        variables = {**variables, "params": params}
        return *self.model.apply(variables, *seen, draw, method="restore"), {}

    def _tone(self, variables, seen):
        toned = self.model.apply(variables, *seen, method="tone_in_training")
        return jnp.where(WITHIN, toned, seen[0]), self._no_posterior(seen), {}

    def _sharpen(self, variables, seen):
        # The stage is trained on the frozen output of the tone stage, and its target is the change
        # that undoes the blur: errors of the tone stage are not its to correct.
        toned = jax.lax.stop_gradient(self.model.apply(variables, *seen, method="tone"))
        sharp = self.model.apply(variables, toned, seen[-1], method="sharpen")
        return seen[0] + (sharp - toned), self._no_posterior(seen), {}

    def _no_posterior(self, seen) -> Posterior:
        blank = jnp.zeros((seen[0].shape[0], 1, 1, self.config.model.latent_channels))
        return Posterior(blank, blank)

    # ---- Evaluation -----------------------------------------------------------------------------

    def evaluate(self, variables, step, dataset, mesh, workdir, log):
        """Restores degraded tiles of `eval.split`."""
        from vae.evaluation.enhancement import quick_figures

        settings = self.config.eval
        figures = quick_figures(read_model(workdir), dataset, settings.split, settings.limit)
        log.write(step, {f"eval_{name}": value for name, value in figures.items()})
        say(
            f"step {step}  {settings.split}, degraded: {figures['psnr_before']:.2f} -> "
            f"{figures['psnr']:.2f} dB, SSIM {figures['ssim_before']:.4f} -> "
            f"{figures['ssim']:.4f}, clean {figures['ssim_clean']:.4f}  ({figures['tiles']} tiles)"
        )

    def report(self, variables, step, dataset, mesh, workdir):
        """The table of degradations: on one process, of the newest checkpoint."""
        from vae.evaluation.enhancement import evaluate_enhancer

        saved = read_model(workdir)  # by all processes: its arrays may lie on several
        if jax.process_index() == 0:
            evaluate_enhancer(saved, dataset, split=self.config.eval.split, out=workdir)


TASK = Enhancement
