"""Reconstruction task of `configs/fundus256.py` and of the published model's `published.py`."""

from typing import Any

from vae.checkpoints.modules import has_linear_path
from vae.data.pipeline import open_dataset, paired
from vae.metrics import SSIM_WINDOW, to_float
from vae.models.augment import augment, mask_squares
from vae.models.autoencoder import LINEAR
from vae.models.cameras import simulate_cameras
from vae.multihost import say
from vae.sharding import local_rows, put_batch
from vae.tasks.device_dataset import DeviceDataset
from vae.tasks.elbo import ElboTask, check_loss
from vae.tasks.linear_initialization import check_linear_model, fit_linear, training_tiles
from vae.tasks.randomness import step_key
from vae.tasks.task import Feed, check_crops, check_reach, read_batches

MASKS = ("", "squares", "tiles")

OWN_PHOTOGRAPHS = """
next, with a folder of your own photographs (its subfolders are the labels):
  fundus-vae make-tiles --photographs PHOTOGRAPHS --out runs/tiles
  fundus-vae build --tiles runs/tiles --data_dir runs/dataset
  python run_experiment.py --config=configs/fundus256.py --config.data.dir=runs/dataset \\
    --workdir=runs/mine --config.data.crop=64 --config.batch_size=32 \\
    --config.train.steps=2000 --config.train.max_minutes=20"""


class Autoencoding(ElboTask):
    """Trains a VAE to reconstruct tiles."""

    def __init__(self, config):
        super().__init__(config)
        self._masked = None
        self._start = None  # the evaluation of step 0, the linear codec

    def rate_factor(self, part):
        """Returns a separate factor for the linear path, which is initialized at its optimum."""
        return self.config.optimizer.linear_multiplier if part == LINEAR else 1.0

    def decays(self, name):
        """Adds the last layer of the published decoder, which is no flax kernel."""
        return super().decays(name) or name.endswith("/to_image/weight")

    def reads(self):
        """Implements `vae.tasks.task.Task.reads`."""
        return [*super().reads(), self.config.data.masked_dir]

    def check(self, problems):
        """Implements `vae.tasks.task.Task.check`."""
        config, data, train = self.config, self.config.data, self.config.train
        check_loss(config, problems)
        check_crops(config, problems)
        problems.choice("train.mask", train.mask, MASKS)
        for group, name in (("data", "balance"), *(("cameras", name) for name in config.cameras)):
            value = config[group][name]
            problems.require(0 <= value <= 1, f"{group}.{name}={value} must lie in [0, 1]")
        problems.positive(config, "eval.batch_size")
        problems.not_negative(config, "eval.photographs")
        problems.divisible_by_devices("eval.batch_size", config.eval.batch_size)
        if problems:
            return
        check_reach(config, problems)
        if has_linear_path(config):
            check_linear_model(config, problems)
        else:
            side = config.model.image_size
            problems.require(
                data.crop == side,
                f"data.crop={data.crop} is not model.image_size={side}, the model's only size",
            )
            problems.require(side >= SSIM_WINDOW, f"model.image_size={side} is below {SSIM_WINDOW}")
        problems.require(
            bool(data.masked_dir) == (train.mask == "tiles"),
            f"train.mask={train.mask!r} and data.masked_dir={data.masked_dir!r}: masked tiles need "
            "train.mask='tiles' and the dataset they are in",
        )
        problems.require(
            not (data.on_device and data.masked_dir),
            "data.on_device=True is for autoencoders, without data.masked_dir",
        )
        problems.require(
            not (any(config.cameras.values()) and data.masked_dir),
            f"cameras={config.cameras.to_dict()} is for training without data.masked_dir",
        )

    # ---- Initialization -------------------------------------------------------------------------

    def open(self, dataset):
        """Opens the dataset of masked tiles, if there is one."""
        data = self.config.data
        if data.masked_dir:
            self._masked = open_dataset(data.masked_dir, cache_dir=data.cache_dir)

    @property
    def identity(self):
        """Returns the fingerprint of the masked tiles that the encoder sees, or None."""
        return {"masked_fingerprint": self._masked.fingerprint if self._masked else None}

    def fit_initialization(self, dataset):
        """Fits the linear codec; the published architecture is initialized at random."""
        if not has_linear_path(self.config):
            return None
        balance = self.config.data.balance
        return fit_linear(self.config, training_tiles(self.config, dataset, balance))

    # ---- Steps ----------------------------------------------------------------------------------

    def feed(self, dataset, mesh, start):
        """Feeds tiles, uint8 [B, S, S, 3]; with masked tiles concatenated, [B, S, S, 6]."""
        if self.config.data.on_device:
            on_device = DeviceDataset(self.config, dataset, mesh)
            size = on_device.images.nbytes / 1e9
            say(f"{len(on_device.images)} tiles, {size:.1f} GB, on each device")
            rows = local_rows(mesh, self.config.batch_size)
            batches = on_device.batches(rows, start)
            return Feed(batches, lambda batch, step: on_device.take(batch["number"]))
        balance = self.config.data.balance
        batches = read_batches(self.config, dataset, mesh, start, balance=balance)
        if self._masked is not None:
            masked = read_batches(self.config, self._masked, mesh, start, balance=balance)
            batches = paired(batches, masked)

        def to_device(batch, step):
            return put_batch(mesh, {"image": batch["image"]})["image"]

        return Feed(batches, to_device)

    def example(self, batch, rows, step):
        """Returns the encoder's input and the target: crops of tiles, float32 in [-1, 1]."""
        data, seed = self.config.data, self.config.seed
        key = step_key(seed, "augment", step)
        images = augment(batch, key, rows, data.crop, data.augment, data.scales)
        camera_key = step_key(seed, "camera", step)
        images = simulate_cameras(images, camera_key, rows, self.config.cameras)
        # Channels 0 to 2 are the target. With masked tiles the encoder's input is channels 3 to 5.
        target, seen = images[..., :3], images[..., -3:]
        if self.config.train.mask == "squares":
            seen = mask_squares(seen, step_key(seed, "mask", step), rows)
        return to_float(seen), to_float(target)

    def forward(self, variables, seen, draw):
        """Encodes, samples and decodes."""
        # Batch statistics are those of the whole sharded batch: XLA reduces over the devices.
        posterior, updated = self.model.apply(
            variables, seen, train=True, method="encode", mutable=["batch_stats"]
        )
        image = self.model.apply(variables, draw(posterior), method="decode")
        return image, posterior, updated.get("batch_stats", {})

    # ---- Evaluation -----------------------------------------------------------------------------

    def evaluate(self, variables, step, dataset, mesh, workdir, log):
        """Reconstructs tiles of `eval.split`."""
        from vae.evaluation.run import evaluate_and_draw

        config, split = self.config, self.config.eval.split
        evaluation, figure = evaluate_and_draw(
            config, variables, dataset, mesh, limit=config.eval.limit
        )
        log.write(step, {f"eval_{name}": value for name, value in evaluation.means.items()})
        log.picture(step, f"eval_{split}", figure)
        means: dict[str, Any] = evaluation.means
        if step == 0 and not config.init_from:
            self._start = evaluation
        say(
            f"step {step}  {split}: SSIM {means['ssim']:.4f}  {means['psnr']:.2f} dB  "
            f"KL {means['kl_bits'] / 8000:.2f} kB a tile  ({evaluation.counts['tiles']} tiles)"
        )

    def report(self, variables, step, dataset, mesh, workdir):
        """Writes the table of the model and of the baselines PCA, JPEG and bicubic."""
        from vae.evaluation.run import evaluate_and_write

        end = evaluate_and_write(self.config, variables, dataset, mesh, workdir, step=step)
        start = self._start
        if start is not None and start.counts == end.counts:
            before, after = start.means, end.means
            say(f"The linear codec, fitted in closed form, gave SSIM {before['ssim']:.4f} and "
                f"{before['psnr']:.2f} dB; {step:,} steps of training changed this by "
                f"{after['ssim'] - before['ssim']:+.4f} and "
                f"{after['psnr'] - before['psnr']:+.2f} dB.")  # fmt: skip
        if self.config.data.source:
            say(OWN_PHOTOGRAPHS)


TASK = Autoencoding
