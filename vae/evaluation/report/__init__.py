"""An evaluation as one HTML page that opens offline."""

from vae.evaluation.report.page import PAGE, write_report
from vae.evaluation.report.pictures import pick

__all__ = ["PAGE", "pick", "write_report"]
