"""Start for a pack that was dropped into `nodes/` without pip: by then InvokeAI is imported, so the hooks come too late.

Late rebuild first (model types, configs, loaders, interface), nodes second. With the wheel installed as well the early hooks have
done the first part, and only the nodes are (idempotently) registered.
"""

from invokeai_video_patches import status, version_gate


def start(node_pack: str) -> None:
    """Bring types and nodes into a process that has already imported InvokeAI; idempotent.

    `node_pack` is the folder's name, under which the node manager lists and removes the nodes.
    """
    version = version_gate.installed_version()
    if not version_gate.is_supported(version):
        status.fell_back("InvokeAI version", f"expected {version_gate.SUPPORTED}, got {version}")
        return
    if not status.patched_early():
        try:
            from invokeai_video_patches import late_rebuild

            late_rebuild.apply()
        except Exception as error:
            status.fell_back("late rebuild", f"{type(error).__name__}: {error}".splitlines()[0])
    from invokeai_video_patches import node_registration

    node_registration.register_nodes(node_pack)
