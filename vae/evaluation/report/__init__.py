"""The evaluation as one offline HTML page. It needs matplotlib, from the extra `report`."""

from vae.evaluation.report.autoencoder import write_report
from vae.evaluation.report.pictures import pick

__all__ = ["pick", "write_report"]
