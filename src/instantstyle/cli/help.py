"""Help pages that show the defaults of a request's fields and the table of methods, read when help is asked for."""

from typing import Any, cast

from typer.core import TyperCommand, TyperOption

FIELDS = {
    "content_weight": ("StyleReference", "content_weight"),
    "weight": ("StyleReference", "weight"),
    "control_weight": ("Control", "weight"),
    "control_window": ("Control", "window"),
}
"""Flags of fields that are not the request's own: the model and the field."""


class RequestCommand(TyperCommand):
    """A command whose flags are fields of a request."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill in what the flags default to, then write the page."""
        from instantstyle import request
        from instantstyle.methods import METHODS

        for parameter in self.params:
            if not isinstance(parameter, TyperOption) or isinstance(parameter.show_default, str):
                continue
            flag = str(parameter.name)
            model, name = FIELDS.get(flag, ("Request", flag))
            field = getattr(request, model).model_fields.get(name)
            if field is not None and field.default not in (None, "") and not field.is_required():
                parameter.show_default = _text(field.default)
            if flag == "method":
                parameter.help = (
                    f"How the style enters. {'; '.join(f'{spec.name}: {spec.help}' for spec in METHODS.values())}."
                )
        super().format_help(ctx, formatter)


def _text(default: object) -> str | bool:
    """A default as it is typed on the command line."""
    values = cast("tuple[object, ...]", default) if isinstance(default, tuple) else (default,)
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values) or False
