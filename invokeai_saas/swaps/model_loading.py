"""InvokeAI's services that load, fetch and move models, off the clock: nobody is charged for a model that was not there (decision 14)."""

from invokeai.app.services.model_install.model_install_default import ModelInstallService
from invokeai.app.services.model_load.model_load_default import ModelLoadService
from invokeai.backend.model_manager.load.model_cache.model_cache import ModelCache

from invokeai_saas.jobs.metering import uncharged


class UnchargedModelLoads(ModelLoadService):
    """From the disk into memory, with the wait for whoever loads the same."""

    load_model = uncharged(ModelLoadService.load_model)
    load_model_from_path = uncharged(ModelLoadService.load_model_from_path)


class UnchargedModelCache(ModelCache):
    """From memory to the device."""

    lock = uncharged(ModelCache.lock)
    lock_in_ram = uncharged(ModelCache.lock_in_ram)


class UnchargedModelInstalls(ModelInstallService):
    """From the network to the disk."""

    download_and_cache_model = uncharged(ModelInstallService.download_and_cache_model)
