from invokeai_video_nodes.pipelines.memory import decode_working_bytes, denoise_working_bytes, encode_working_bytes
from invokeai_video_nodes.pipelines.shapes import ClipShape


def test_decoding_needs_one_frames_memory_and_encoding_half():
    one_frame = decode_working_bytes(height=512, width=512, element_size=2)

    assert one_frame == 512 * 512 * 2 * 2200
    assert encode_working_bytes(height=512, width=512, element_size=2) * 2 == one_frame


def test_denoising_grows_with_frames_and_shrinks_with_the_frame_patch_size():
    def needed(num_frames, f_patch_size):
        clip = ClipShape("z-image-video", num_frames, 512, 512, f_patch_size)
        return denoise_working_bytes(clip, dim=3840, caption_tokens=64, element_size=2)

    assert needed(32, 2) > 1.9 * needed(16, 2)
    assert needed(16, 1) > 1.8 * needed(16, 2) > 3.2 * needed(16, 4)
    assert 2**20 < needed(16, 2) < 4 * 2**30
