"""What an engine's process has: the model, and the loop that answers with it."""

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.checkpoint.loadable import loadable
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.cache_budget import default_cache
from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.server.engine_loop import EngineLoop, about_engine
from dsv3_plugin.inference.server.messages import About, EngineOrder
from dsv3_plugin.inference.server.new_weights import NewWeights


def ordered(order: EngineOrder) -> tuple[EngineLoop, About]:
    """An engine as it was ordered, in this process' world.

    Raises:
        UserError: the weights cannot be loaded or guess nothing ahead, or memory does not suffice.
    """
    checkpoint = order.checkpoint
    if order.hf is not None:
        import_hf(order.hf, checkpoint)
    if order.drafts and not loadable(checkpoint).model.mtp_num_layers:
        raise UserError(f"{checkpoint} has no multi-token prediction layers; leave --drafts out.")
    tokenizer = tokenizer_of_checkpoint(checkpoint)
    model, config = load_for_inference(checkpoint)
    routes = len(config.moe_layers)
    cache_bytes = order.cache_bytes
    if cache_bytes is None:
        predictors = config.mtp_num_layers if order.drafts else 0
        shape = CacheShape.of(model.config, predictors=predictors, moe_layers=routes)
        longest = model.max_sequence_length + 2 * order.drafts
        cache_bytes = default_cache(shape, order.most_running, longest)
    # Where tokens go is remembered for those who train on answers: to latents it adds little.
    settings = EngineSettings(
        cache_bytes,
        most_running=order.most_running,
        drafts=order.drafts,
        record_experts=routes > 0,
    )
    engine = Engine(model, settings, text_of=tokenizer.decode)
    root = order.weights_root
    new_weights = None if root is None else NewWeights(root, config, tokenizer)
    loop = EngineLoop(engine, order.most_running, new_weights)
    return loop, about_engine(engine, config)
