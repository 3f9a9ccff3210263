"""Training of the built-in model on the emoji world: bank, VAE, CLIP, UNet, adapter, each a resumable stage.

    python -m instantstyle.train.emoji bank vae clip unet adapter export

Stages read what earlier ones wrote below one working folder; killed and started again, each goes on where it was.
"""
