"""The one exception that a person's input can cause."""


class InputError(Exception):
  """Something the user gave is wrong: a file, an annotation, a config value.

  The message names the file, the image and the value. `main` prints it without
  a traceback and exits with status 2; everything else that is raised is a bug.
  """
