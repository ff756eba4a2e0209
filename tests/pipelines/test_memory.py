from invokeai_video_nodes.pipelines.memory import (
    decode_working_bytes,
    denoise_working_bytes,
    encode_working_bytes,
    motion_working_bytes,
    svd_decode_frames,
    svd_decode_working_bytes,
    svd_working_bytes,
)
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


def test_animatediffs_memory_goes_by_the_frames_of_a_window_and_by_guidance():
    def needed(frames, halves):
        return motion_working_bytes(frames=frames, halves=halves, height=64, width=64, first_width=320, element_size=2)

    assert needed(32, 1) == needed(16, 2)
    assert needed(32, 2) - needed(16, 2) == needed(24, 2) - needed(8, 2)


def test_animatediffs_memory_covers_what_was_measured_with_the_real_sizes():
    measured = {(8, 1, 16): 226, (8, 1, 32): 468, (8, 2, 32): 818, (16, 2, 16): 612}
    for (frames, halves, cells), mebibytes in measured.items():
        needed = motion_working_bytes(frames=frames, halves=halves, height=cells, width=cells, first_width=320, element_size=4)

        assert mebibytes < needed / 2**20 < 1.25 * mebibytes


def test_svd_s_unet_is_given_what_was_measured_and_twice_that_with_guidance():
    """932 MiB were measured at 2 x 14 frames of 192x320 with the public UNet in float32."""
    clip = ClipShape("svd", 14, 192, 320, latent_channels=4)
    guided, alone = (svd_working_bytes(clip, width=320, element_size=4, guided=guided) / 2**20 for guided in (True, False))

    assert 932 < guided < 1.25 * 932
    assert alone < 0.51 * guided


def test_svd_s_decoder_is_given_what_was_measured():
    """1920 MiB were measured at 4 frames of 256x384 with the public VAE in float32."""
    four_frames = 4 * svd_decode_working_bytes(height=256, width=384, element_size=4, channels=128) / 2**20

    assert 1920 < four_frames < 1.25 * 1920


def test_svd_decodes_as_many_frames_at_once_as_fit_and_never_more_than_its_release_did():
    gib = 2**30

    assert [svd_decode_frames(free, frame_bytes=gib, num_frames=25) for free in (0, gib, 5 * gib, 99 * gib)] == [1, 1, 4, 14]
    assert svd_decode_frames(99 * gib, frame_bytes=gib, num_frames=6) == 6
