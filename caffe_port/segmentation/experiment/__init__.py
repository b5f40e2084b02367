"""Table 1 of the paper for any data: every system at every level of strong annotations.

``python -m caffe_port.segmentation.experiment`` plans steps, each a command that can also be run by hand, runs them,
and reports. Finished steps are not repeated, and an interrupted training continues from its last snapshot.
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
