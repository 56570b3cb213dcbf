"""Cloud Logging's tail by Google's own Python client: entries arrive while a service is asked.

  tail_logs.py SERVICE TEXT

Prints each entry as it comes and ends with the first that holds TEXT.
"""

import os
import sys

from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client
from google.cloud.logging_v2.types import TailLogEntriesRequest
from google.oauth2.credentials import Credentials

SERVICE, TEXT = sys.argv[1:3]
client = LoggingServiceV2Client(credentials=Credentials(os.environ["GOOGLE_OAUTH_ACCESS_TOKEN"]))
request = TailLogEntriesRequest(
    resource_names=[f"projects/{os.environ['GOOGLE_CLOUD_PROJECT']}"],
    filter=f'resource.type="cloud_run_revision" AND resource.labels.service_name="{SERVICE}"',
)
stream = client.tail_log_entries(iter([request]), timeout=60)
print("tailing", flush=True)
for response in stream:
    for entry in response.entries:
        said = entry.text_payload or entry.http_request.request_url or str(entry.json_payload)
        print(entry.log_name, said, flush=True)
        if TEXT in said:
            sys.exit(0)
sys.exit(f"the stream ended without {TEXT!r}")
