"""Loggers and trainers that a `GradientMonitor` writes to or measures in; import the module you need.

    sigscale.integrations.files         FileLogger: CSV or JSON lines
    sigscale.integrations.tensorboard   TensorBoardLogger
    sigscale.integrations.wandb         WandbLogger: Weights & Biases
    sigscale.integrations.lightning     GradientMonitorCallback for lightning.pytorch.Trainer
    sigscale.integrations.transformers  GradientMonitorCallback for transformers.Trainer

Their libraries: `pip install "sigscale[integrations]"`.
"""
