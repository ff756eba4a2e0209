"""The video core: tensors in, frames and files out. Pure torch and diffusers; InvokeAI is never imported here.

noise -> z_image.denoise -> decode.decode_frames -> mp4.write_mp4, each step checked by shapes.ClipShape before weights
are used.
"""
