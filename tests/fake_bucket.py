"""A folder as gs://bucket, for a process of its own: `python fake_bucket.py FOLDER`.

Prints what is read of the pets in gs://bucket/sets, and how often the bucket was asked. Two
libraries read there: ArrayRecord by its own client, which is told of a server here, and epath by
TensorFlow or fsspec; only the latter can be shown another place.
"""

import http.server
import json
import os
import sys
import threading
import urllib.parse
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from boxseg_jax.data import tfds


class Folder(LocalFileSystem):
  """What epath sees of the bucket."""

  folder = ""
  protocol = ("gcs", "gs")

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(str(path).replace("gs://bucket", cls.folder))


class Server(http.server.BaseHTTPRequestHandler):
  """What ArrayRecord sees of it: GET of a part of an object."""

  asked = 0

  def do_GET(self):
    Server.asked += 1
    name = urllib.parse.urlparse(self.path).path.partition("/b/bucket/o/")[2]
    content = (Path(Folder.folder) / urllib.parse.unquote(name)).read_bytes()
    first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
    start = int(first) if first else max(len(content) - int(last), 0)
    part = content[start : int(last) + 1 if first and last else None]
    self.send_response(206)
    self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
    self.send_header("Content-Length", str(len(part)))
    self.end_headers()
    self.wfile.write(part)

  def log_message(self, *_):
    """Says nothing."""


def described(records):
  """What records hold, as JSON can."""
  return [
    [r.image_id, r.boxes.tolist(), r.read_image().tolist(), r.read_labels().tolist()]
    for r in records
  ]


if __name__ == "__main__":
  Folder.folder = sys.argv[1]
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
  os.environ["EPATH_USE_TF"] = "false"
  for protocol in Folder.protocol:
    fsspec.register_implementation(protocol, Folder, clobber=True)
  found = tfds.load("oxford_iiit_pet", "train", ("background", "pet"), data_dir="gs://bucket/sets")
  print(json.dumps({"records": described(found), "asked": Server.asked}))
