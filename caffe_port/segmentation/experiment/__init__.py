"""Table 1 of the paper for any data: every system at every level of strong annotations.

``python -m caffe_port.segmentation.experiment`` plans steps, each a command that anybody can run by hand, runs them,
and reports. What is done stays done, and a training that was killed goes on where its last snapshot is.
"""

from caffe_port.segmentation.experiment.plan import SYSTEMS, Cell, Plan, plan
from caffe_port.segmentation.experiment.recipe import RECIPES, Recipe, Training
from caffe_port.segmentation.experiment.report import read_scores, report
from caffe_port.segmentation.experiment.run import Runner
from caffe_port.segmentation.experiment.steps import Step

__all__ = [
    "RECIPES",
    "SYSTEMS",
    "Cell",
    "Plan",
    "Recipe",
    "Runner",
    "Step",
    "Training",
    "plan",
    "read_scores",
    "report",
]
