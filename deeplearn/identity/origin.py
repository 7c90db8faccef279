"""Which files are executed for a run that was made earlier, perhaps in another place."""

from collections.abc import Collection, Mapping

from deeplearn import experiment
from deeplearn.errors import UserError
from deeplearn.files import locate
from deeplearn.identity import source as sources


def origin(
    workdir,
    recorded: sources.Source,
    digests: Mapping[str, str] | None,
    accept: Collection[str] = (),
    execute_copy: bool = False,
) -> sources.Source:
    """The Source to execute for what lies in `workdir`.

    The files where they were, if they are unchanged; else the built-in experiment of that name, if its files are those
    of the run. The copy in `workdir` is executed on request only, because it may be somebody else's code.

    Args:
      workdir: the directory of a run or a study.
      recorded: where its files were.
      digests: theirs; None for a directory from before there were identities, of which nothing can be compared.
      accept: with "source" in it, files that changed are executed.
      execute_copy: whether to execute the copy.

    Raises:
      UserError: the files changed or are gone.
    """
    inside = sources.inside(recorded, workdir)
    if digests is None:
        if not recorded.experiment.is_file():
            raise UserError(
                f"{workdir} was made from {recorded.experiment}, which is not there, and has no copy of it; put the "
                "file back"
            )
        if inside and not execute_copy:
            raise UserError(
                f"{recorded.experiment} lies in {workdir} itself, and may be somebody else's code; --execute_copy "
                "executes it, if you trust that directory"
            )
        return sources.collect(recorded.experiment)
    if execute_copy:
        return sources.stored(recorded, digests, workdir)
    home = experiment.HOME
    built_in = sources.Source(
        home / recorded.experiment.name, {name: home.parent / name for name in recorded.modules}, recorded.libraries
    )
    for candidate in (recorded, built_in):
        absolute = candidate.experiment.is_absolute()  # ours are: a relative path would be below wherever you are
        if absolute and not sources.inside(candidate, workdir) and not sources.differing(candidate, digests):
            return sources.read(candidate)
    if "source" in accept and recorded.experiment.is_file() and not inside:
        return sources.collect(recorded.experiment)
    changed = ", ".join(sources.differing(recorded, digests)) or "it"
    raise UserError(
        f"{workdir} was made with other source: {changed} changed or is gone ({recorded.experiment}); --execute_copy "
        f"executes the copy in {locate(workdir) / sources.folder(digests)}, if you trust that directory; put the files "
        "back, or take them as they are now with --accept=source"
    )
