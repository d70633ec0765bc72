"""A program with a provider of its own that loses events in a burst, and gets SIGTERM after its last one."""

import os
import signal
import time

from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult

import otel_activity


class FarAway(LogRecordExporter):
    """A receiver that answers after a while."""

    def export(self, batch):
        time.sleep(0.5)
        for readable in batch:
            action = readable.log_record.attributes.get("activity.action")
            if action == "the last one":
                print("exported:", action, flush=True)
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis=30_000):
        return True

    def shutdown(self):
        pass


provider = LoggerProvider()
provider.add_log_record_processor(BatchLogRecordProcessor(FarAway(), schedule_delay_millis=600_000))
set_logger_provider(provider)
otel_activity.instrument(max_queue_size=8, shutdown_timeout=60)
while not otel_activity.get_queue_metrics()["dropped"]:
    otel_activity.log_user_action("burst")
print("events were lost", flush=True)
while otel_activity.get_queue_metrics()["waiting"]:
    time.sleep(0.01)
otel_activity.log_user_action("the last one")
os.kill(os.getpid(), signal.SIGTERM)
