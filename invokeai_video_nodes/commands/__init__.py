"""The verbs of `invokeai-video`, one file each. Heavy imports happen inside functions, so that `--help` is instant."""
