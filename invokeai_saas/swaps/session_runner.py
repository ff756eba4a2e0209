"""InvokeAI's runner of one session: a node that fails because its item is not this worker's any more is stopped, not failed."""

import sys
from typing import Any

from invokeai.app.invocations.baseinvocation import BaseInvocation
from invokeai.app.services.session_processor.session_processor_default import DefaultSessionRunner
from invokeai.app.services.session_queue.session_queue_common import SessionQueueItem

from invokeai_saas.jobs import lease


class LeasedSessionRunner(DefaultSessionRunner):
    """Upstream's, for items that can be taken away in the middle of a node: canceled, deleted, given to another worker."""

    def _on_node_error(self, invocation: BaseInvocation, queue_item: SessionQueueItem, **told: Any) -> None:
        """As upstream, called where the error is handled. Raises LeaseLost, which the processor expects, where the item is lost.

        Upstream would log the refused write as the node's error, and then stumble over the row, which is as it was before the run.
        """
        lost = lease.lost_behind(sys.exc_info()[1])
        if lost is not None:
            raise lost
        attempt = lease.working_on()
        if attempt is not None:
            lease.demand_wanted(self._services.session_queue.database, attempt)
        super()._on_node_error(invocation=invocation, queue_item=queue_item, **told)
