"""The Speculators config of a Sprout draft."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator
from speculators import SpeculatorModelConfig
from transformers import LlamaConfig, PretrainedConfig


@SpeculatorModelConfig.register("sprout")
class SproutConfig(SpeculatorModelConfig):
    """What a checkpoint's ``config.json`` says; what the draft needs besides its layer is a field here."""

    _auto_class: ClassVar[str | None] = None  # or transformers would copy this file into every checkpoint

    speculators_model_type: Literal["sprout"] = "sprout"
    architectures: list[str] = Field(default_factory=lambda: ["SproutModel"])
    transformer_layer_config: PretrainedConfig = Field(default_factory=LlamaConfig)

    @field_serializer("transformer_layer_config")
    def serialize_layer(self, value: PretrainedConfig) -> dict[str, Any]:
        """The layer's config as JSON, without transformers' defaults."""
        fields: dict[str, Any] = value.to_diff_dict()
        return fields

    @field_validator("transformer_layer_config", mode="before")
    @classmethod
    def parse_layer(cls, value: Any) -> Any:
        """A Llama config from its JSON."""
        return LlamaConfig.from_dict(value) if isinstance(value, dict) else value


SpeculatorModelConfig.reload_schema()
