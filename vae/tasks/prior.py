"""Task of `configs/prior256.py`: a flow-matching prior over the latents of an autoencoder."""

import dataclasses

import jax

from vae.checkpoints.loading import load_saved, variables_hash
from vae.checkpoints.modules import blank_statistics, initial_variables
from vae.checkpoints.safetensors_io import SavedModel
from vae.models import with_spectrum
from vae.sharding import put_batch
from vae.tasks.flow import flow_loss, label_numbers, make_encoder
from vae.tasks.linear_initialization import training_tiles
from vae.tasks.prior_initialization import fit_prior, for_latents, load_autoencoder
from vae.tasks.task import Feed, Task, check_crops, check_reach, read_batches


class Prior(Task):
    """Trains a prior to predict the velocity from noise to latents."""

    evaluates_checkpoint = True
    autoencoder: SavedModel

    def reads(self):
        """Implements `vae.tasks.task.Task.reads`."""
        return [*super().reads(), self.config.prior.autoencoder]

    def check(self, problems):
        """Implements `vae.tasks.task.Task.check`."""
        config, model = self.config, self.config.model
        check_crops(config, problems)
        problems.share(config, "prior.label_dropout")
        problems.positive(
            config, "prior.draws", "prior.sample_steps", "prior.time_spread", "prior.time_shift"
        )
        problems.require(
            bool(config.prior.autoencoder), "prior.autoencoder is empty, expected an autoencoder"
        )
        problems.require(
            all(type(name) is str and name for name in model.labels),
            f"model.labels={model.labels!r} must be names",
        )
        if problems:
            return
        check_reach(config, problems)
        problems.require(
            len(model.widths) == len(model.depths),
            f"model.widths={model.widths} and model.depths={model.depths} differ in length",
        )
        for width in model.widths[-2:]:
            problems.require(
                width % model.heads == 0,
                f"model.heads={model.heads} does not divide the {width} channels of a level that "
                f"has attention, the last two of model.widths={tuple(model.widths)}",
            )

    # ---- Initialization -------------------------------------------------------------------------

    def open(self, dataset):
        """Loads the autoencoder, and adds the sizes of its latents and the labels to the config."""
        self.autoencoder = load_autoencoder(self.config)
        self.config = for_latents(self.config, self.autoencoder, dataset)
        self.__dict__.pop("model", None)

    def statistics(self, variables):
        """Returns `latent_mean` and `latent_var` of the fitted Gaussian, float32 [C]."""
        return blank_statistics(self.config, variables)

    @property
    def identity(self):
        """Returns the hash of the autoencoder that defines the latents."""
        return {"autoencoder": variables_hash(self.autoencoder.variables)}

    def fresh_variables(self, fit=None):
        """Returns variables with the fitted Gaussian, or with a unit Gaussian."""
        variables = initial_variables(self.config)
        return variables if fit is None else with_spectrum(variables, fit)

    def fit_initialization(self, dataset):
        """Fits the best Gaussian to the latents."""
        return fit_prior(self.config, self.autoencoder, training_tiles(self.config, dataset))

    def from_saved(self, saved):
        """Takes the saved variables; if the labels differ, the embeddings are initialized anew."""
        model = saved.config.model
        if "labels" in model and tuple(model.labels) != tuple(self.config.model.labels):
            params = {k: v for k, v in saved.variables["params"].items() if k != "label"}
            saved = dataclasses.replace(saved, variables={**saved.variables, "params": params})
        return super().from_saved(saved)

    # ---- Steps ----------------------------------------------------------------------------------

    def feed(self, dataset, mesh, start):
        """Feeds posteriors of tiles, encoded on the devices, with the indices of their labels."""
        batches = read_batches(self.config, dataset, mesh, start, labels=True)
        encode = make_encoder(self.config, mesh, self.autoencoder)

        def to_device(batch, step):
            names = label_numbers(batch["label"], self.config.model.labels)
            placed = put_batch(mesh, {"image": batch["image"], "label": names})
            return encode(placed["image"], step) | {"label": placed["label"]}

        return Feed(batches, to_device)

    def example(self, batch, rows, step):
        """Returns the batch: its tiles were cropped before they were encoded."""
        return batch

    def loss(self, params, fixed, batch_stats, example, rows, key):
        """Computes `vae.tasks.flow.flow_loss`."""
        loss = flow_loss(self.config, self.model)
        return loss(params, fixed, batch_stats, example, rows, key)

    # ---- Evaluation -----------------------------------------------------------------------------

    def evaluate(self, variables, step, dataset, mesh, workdir, log):
        """Draws a sheet of samples."""
        from vae.evaluation.samples import sheet

        log.picture(step, "samples", sheet(load_saved(workdir), self.autoencoder))

    def report(self, variables, step, dataset, mesh, workdir):
        """Writes the table of distances for the newest checkpoint, on one process."""
        from vae.evaluation.samples import evaluate_prior

        saved = load_saved(workdir)
        if jax.process_index() == 0:
            settings = self.config.eval
            evaluate_prior(
                saved,
                self.autoencoder,
                dataset,
                split=settings.split,
                count=settings.limit,
                out=workdir,
            )


TASK = Prior
