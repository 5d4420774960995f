"""The distribution of every gradient of a model, step by step: `GradientMonitor` and `GradientHistory`."""

from .history import GradientHistory as GradientHistory
from .monitor import GradientMonitor as GradientMonitor
