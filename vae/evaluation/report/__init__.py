"""An evaluation as one HTML page that opens offline. It needs matplotlib, the extra `report`."""

from vae.evaluation.report.autoencoder import write_report
from vae.evaluation.report.pictures import pick

__all__ = ["pick", "write_report"]
