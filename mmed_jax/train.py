"""Trains one stage: records in, a run directory out.

    python -m mmed_jax.train --config=stage1[:VARIANT] [--config.KEY=VALUE ...]
    python -m mmed_jax.train --config=stage2[:VARIANT]
    python -m mmed_jax.train --config=pretrain[:VARIANT]      running text, before stage 1
    python -m mmed_jax.train --config=stage1:custom --config.init_from=FOLDER      your own model

Calling the same command again continues the run from its newest good checkpoint; Ctrl-C and SIGTERM save and leave,
with exit code 75 before the last step.
Read it from top to bottom: it is the recipe.
"""

import functools
import os
import zlib
from typing import Any

import numpy as np

# XLA's C++ log lines are no news for a user; errors still come.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from mmed_jax.checkpoints.run_directory import guard_run_dir, run_storage
from mmed_jax.common import console
from mmed_jax.common.checksums import shorten
from mmed_jax.common.errors import UNFINISHED, UserError, run_command
from mmed_jax.common.place_files import is_there
from mmed_jax.common.place_flags import ModelPlace
from mmed_jax.config.overrides import complete_config, parse_args, parse_distributed
from mmed_jax.config.values import batch_rows, with_grad_accum
from mmed_jax.parallel import peers
from mmed_jax.parallel.host_allocator import keep_freed_memory
from mmed_jax.parallel.refusal import refused_together
from mmed_jax.training import adapter_start, host_inputs, setup
from mmed_jax.training.profiling import FOLDER, Profiler, parse_steps

FLAGS = {
    "profile": ("", "START:STOP, steps to profile"),
    "base": (ModelPlace(), "DIR, where the frozen weights of an adapter lie now, if they were moved"),
    "plan_only": (False, "compile the step for the devices here, print what it needs and stop"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the training that the command line describes; see the module's docstring and --help.

    Returns:
      0, or errors.UNFINISHED where a signal stopped it before its last step: everything is saved.
    """
    # What is wrong on one host ends all of them, from its command line on.
    with refused_together(parse_distributed(argv)):
        config, flags = parse_args(argv, description=__doc__, extra=FLAGS, complete=False)
        profiled = parse_steps(flags.profile)
    console.outlive()
    peers.hush(config)

    # ---- What is asked for: small files only, no device -----------------------------------------------------------
    with refused_together(config):
        complete_config(config, flags, base_dir=flags.base)
        source = setup.open_init(config, flags.base)
        setup.check_rate(config, source, flags.given)
        tok = setup.open_tokenizer(config, source)
        cfg = setup.model_config(config, source, tok)
        # With an adapter, what it is and the weights beneath it; None = all weights are trained (or random).
        spec = adapter_start.run_spec(config, cfg, source)
        frozen = adapter_start.open_frozen(config, source, flags.base)
        # A plan leaves no run behind.
        run_dir = None if flags.plan_only else guard_run_dir(config.run_dir, config, write=False)
        # Of several hosts each reads for itself, under one path perhaps another thing.
        inputs = host_inputs.input_facts(config, cfg, tok, source, frozen)

    # ---- Processes and data ----------------------------------------------------------------------------------------
    from mmed_jax.data.token_report import print_report
    from mmed_jax.parallel import distributed
    from mmed_jax.training import host_agreement

    # Hosts that do not mean the same run end here, before one of them takes a step.
    decisive = {"plan_only": flags.plan_only, "profile": flags.profile}
    check_run = functools.partial(host_agreement.check_run, config, run_dir, decisive, inputs)
    process, processes = distributed.initialize(config, check_run)
    main_process = process == 0
    say = print if main_process else _silent
    coordinator = distributed.coordinator
    prepared = host_agreement.prepare_on_hosts(config, tok, coordinator, say)
    if main_process:
        print_report(prepared.report)
    steps = setup.total_steps(config, len(prepared.train))
    if profiled and profiled[0] > steps:
        raise UserError(f"--profile={flags.profile}: the run has {steps:,} steps")

    # ---- Devices ---------------------------------------------------------------------------------------------------
    import jax

    from mmed_jax.checkpoints.checkpointer import Checkpointer, PreemptionGuard
    from mmed_jax.common.progress import Progress
    from mmed_jax.data.chat_formats import syntax_of
    from mmed_jax.data.loader import BatchStream
    from mmed_jax.model.remat import check_remat
    from mmed_jax.parallel import sharding
    from mmed_jax.parallel.devices import check_platform, choose_devices, enable_compile_cache
    from mmed_jax.parallel.watchdog import Watchdog
    from mmed_jax.planning import host_memory, on_device
    from mmed_jax.training import state as placement
    from mmed_jax.training import validation
    from mmed_jax.training.best_evaluation import BestEvaluation, changed_sample
    from mmed_jax.training.flops import train_flops_per_token
    from mmed_jax.training.metric_log import DelayedMetrics, MetricsLogger
    from mmed_jax.training.program import attention_backend, train_program
    from mmed_jax.training.run_page import PAGE, try_report
    from mmed_jax.training.telemetry import CompileCounter, CompileWatch, SpeedMeter, memory, process_seconds

    held_out = validation.held_out(config, tok, prepared)
    devices = choose_devices(config)
    check_platform(config, devices[0].platform)
    enable_compile_cache(config.compile_cache, processes)
    if devices[0].platform == "cpu":
        keep_freed_memory()
    sizes = {a: config.mesh[a] for a in sharding.MESH_AXES}
    mesh = sharding.make_mesh(**sizes, devices=devices)
    config = with_grad_accum(config, mesh.shape["data"] * mesh.shape["fsdp"])
    rows, seq_len = batch_rows(config), config.data.seq_len
    dims = {k: getattr(cfg, k) for k in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size", "hidden_size")}
    sharding.check_divisible(dict(mesh.shape), dims, rows // config.grad_accum, seq_len)
    backend = attention_backend(config, cfg, devices[0].platform, mesh.shape["context"])
    check_remat(config.remat, devices[0])
    syntax = syntax_of(tok)
    chat = syntax.name if syntax else "none"
    facts = {
        "attention": backend,
        "chat": f"format {chat}",
        "data": f"{len(prepared.train):,} rows of {seq_len} tokens, {rows} rows a step in {config.grad_accum} part(s)",
        "length": f"{steps:,} steps, {steps * rows / len(prepared.train):.2f} epochs",
    }
    if flags.chosen:
        facts = {"chosen": f"\n{'':11}".join(flags.chosen), **facts}
    if spec is not None:
        facts = {**adapter_start.describe_adapter(config, cfg, spec), **facts}
    if devices[0].platform == "cpu":
        facts["memory"] = host_memory.describe(host_memory.estimate(config, cfg, mesh))
    if text := held_out.describe(config):
        facts["evaluation"] = text
    say(setup.banner(config, cfg, mesh, facts), flush=True)

    program = train_program(config, cfg, mesh, steps=steps, attention=backend)
    if flags.plan_only:
        on_device.plan_here(program, config, cfg, tokens=steps * rows * seq_len, say=say)
        return 0

    # ---- State: the newest good checkpoint, or step 0 --------------------------------------------------------------
    abstract, base, adapter_meta = program.state, program.base, None
    checkpointer = Checkpointer(run_dir, **config.checkpoint.to_dict())
    data_state = {"table": prepared.train.fingerprint, "seed": config.seed, "tokens_seen": 0}
    data_state["contents"] = prepared.report["contents"]  # for the model card
    data_state["files"], data_state["start"] = prepared.report["files"], {}  # for an audit
    with on_device.device_failures(config, cfg, mesh):
        restored = checkpointer.restore_latest(abstract, restart=config.restart)
    first, evaluated = 0, None
    if restored is not None:
        state, meta = restored
        setup.check_data_state(meta, data_state, run_dir)
        data_state["tokens_seen"], first = meta["data_state"]["tokens_seen"], int(state["step"])
        evaluated = meta["data_state"].get("evaluations")
        data_state["start"] = meta["data_state"].get("start", {})
        say(f"resumed    step {first:,} of {steps:,}", flush=True)
        if text := changed_sample(meta["config"], config):
            say(text)
    best = BestEvaluation(config.checkpoint.best_metric, evaluated, rows_per_epoch=len(prepared.train), rows=rows)
    data_state["evaluations"] = best.record
    if first >= steps or best.has_ended(first, config.stop_after):
        early = f" It ended early: {best.reason()}; --config.stop_after=0 goes on." if first < steps else ""
        say(f"complete   step {first:,} of {steps:,} was reached before, nothing is left to do.{early}")
        setup.write_run_files(run_dir, config, cfg, tok, source, finished=True)
        if main_process and not is_there(run_dir / PAGE):
            try_report(run_dir)
        checkpointer.close()
        return 0
    with on_device.device_failures(config, cfg, mesh):
        if spec is not None:
            frozen = frozen or adapter_start.write_random_base(config, cfg, tok, mesh)
            base = adapter_start.load_frozen(frozen, program, config)
            adapter_meta = adapter_start.adapter_meta(spec, frozen, config)
            say(setup.describe_source(frozen, "base"), flush=True)
        if restored is None:
            params = placement.first_params(config, cfg, source, abstract, spec, base)
            if source is not None and source is not frozen:
                say(setup.describe_source(source), flush=True)
            data_state["start"] = setup.describe_start(config, source)
            state = placement.fresh_state(params, program.tx, abstract)
            del params
        # Devices work on behind this line: what does not fit would only be said at the next.
        jax.block_until_ready((state, base))
    if profiled and profiled[1] <= first:
        say(f"warning    --profile={flags.profile}: nothing is profiled, step {first:,} was reached before")
    # Only now is it sure that the run is ours and goes on.
    setup.write_run_files(run_dir, config, cfg, tok, source)

    # ---- The steps -------------------------------------------------------------------------------------------------
    placer = placement.BatchPlacer(mesh, rows, seq_len)
    stream = BatchStream(prepared.train, rows, config.seed, first, local_rows=placer.rows, mixture=prepared.mixture)
    evaluation = validation.Evaluation(
        held_out, config, cfg, tok, program, base, coordinator, steps=steps, rows=len(prepared.train)
    )
    delayed, early = DelayedMetrics(), ""
    meter = SpeedMeter(
        flops_per_token=train_flops_per_token(cfg, seq_len, spec),
        device_kind=devices[0].device_kind,
        num_devices=len(devices),
    )
    meter.tokens_seen = data_state["tokens_seen"]
    with (
        jax.set_mesh(mesh),
        on_device.device_failures(config, cfg, mesh),
        CompileCounter() as compiles,
        checkpointer,
        MetricsLogger(
            run_dir, tensorboard=config.tensorboard, wandb=config.wandb, is_main=main_process, config=config.to_dict()
        ) as log,
        Progress(
            steps, start=first, every=config.log_every, label=config.name, is_main=main_process, steady=True
        ) as progress,
        Profiler(run_storage(run_dir).growing / FOLDER, profiled) as profiler,
        Watchdog(coordinator) as watchdog,
        PreemptionGuard(beat=watchdog.beat) as guard,
    ):
        log.start(
            first,
            steps=steps,
            rows=rows,
            rows_per_epoch=len(prepared.train),
            devices=len(devices),
            platform=devices[0].platform,
            chat_format=chat,
            startup_seconds=process_seconds(),
            **meter.describe(),
        )

        def record(held: tuple[int, dict[str, np.ndarray], dict[str, Any]] | None) -> None:
            """Writes the numbers of a finished step; a loss or norm that is not finite ends the run here."""
            if held is None:
                return
            number, m, host_memory = held
            setup.check_finite(number, m, stream, log)
            languages = validation.by_language(m.pop("language_nll"), m.pop("language_count"), "loss")
            values = {k: float(v) for k, v in m.items()}
            speed = meter.step(
                real_tokens=values["real_tokens"],
                supervised_tokens=values["supervised_tokens"],
                compiled=host_memory.pop("compiled"),
            )
            data_state["tokens_seen"] = meter.tokens_seen
            log.train(number, {**values, **languages, **speed, **memory(), **checkpointer.last_whole(), **host_memory})
            shown = {"loss": values["loss"], "lr": values["lr"]}
            if "tokens_per_second" in speed:  # not of a step that was compiled
                shown["tok/s"] = round(speed["tokens_per_second"])
            progress.update(number, shown)

        def settle() -> None:
            """Before what is no step. Nothing is written from a state whose numbers have not been looked at."""
            record(delayed.flush())
            watchdog.expect_pause()

        def evaluate(number: int) -> dict[str, float] | None:
            """The numbers of the model as it is, written down; None where the run is to stop before they are there."""
            settle()
            with progress.working("validating", pause="validation"):
                numbers = evaluation.numbers(state["params"], guard.should_stop)
                answers = [] if numbers is None else evaluation.answers(state["params"])
            if numbers is None:
                progress.note(f"step {number}: not validated, since the run is to stop")
            else:
                best.add(number, numbers)
                log.evaluation(number, numbers)
                log.answers(number, answers)
                progress.keep(validation.newest_numbers(numbers))
                progress.note(f"step {number}: {validation.describe_losses(numbers)}")
            meter.restart()
            return numbers

        batches = iter(stream)
        train_step = host_agreement.compiled_together(program.train_step, coordinator, "the training step")
        train_step = CompileWatch(compiles, "train_step", train_step, ("state", "batch", "base"))
        number, stop = first, False
        if restored is None and evaluation.is_due(0):
            # Stopped in it, no step is taken: the next start evaluates the untrained model.
            stop = evaluate(0) is None
        meter.restart()
        for index in range(first, first if stop else steps):
            number = index + 1
            profiler.before(number, state)
            with meter.data_wait():
                batch = next(batches)
            with progress.working("compiling the training step", show=number == first + 1):
                state, metrics = train_step(state, placer(batch), base)
            changed = train_step.changed
            if number == first + 1:
                log.event("compiled", number, startup_seconds=process_seconds(), **compiles.summary("train_step"))
            elif changed:
                log.event("recompiled", number, changed=changed, **compiles.summary("train_step"))
                progress.note(f"warning: step {number} was compiled anew, which costs time: {shorten(changed)}")
            # While this step runs on the devices, the numbers of the one before are written.
            rows_hash = f"{zlib.crc32(stream.row_ids(index).tobytes()):08x}"
            record(delayed.push(number, metrics, batch=rows_hash, compiled=number == first + 1 or bool(changed)))
            stop = guard.should_stop(number)

            losses = None
            if evaluation.is_due(number):
                losses = evaluate(number)
                stop = losses is None or guard.should_stop(number)
                if losses is not None and number < steps and best.is_over(config.stop_after):
                    early = best.reason()
                    log.event("stopped_early", number, reason=early)
            improved = checkpointer.is_best(losses) and config.checkpoint.keep_best > 0

            saved = checkpointer.maybe_save(
                number,
                state,
                data_state=lambda: data_state,
                config=config,
                adapter=adapter_meta,
                metrics=losses,
                force=stop or early != "" or number == steps or improved,
                before=settle,
            )
            if saved:
                log.event("save", number, **checkpointer.last_save())
                progress.pause("save", checkpointer.blocked_seconds)
            if profiler.after(number, state):
                progress.note(f"profile    python -m mmed_jax.report --run={config.run_dir} --profile")
            if stop or early:
                break
        if stop and not early:
            log.event("stopped", number, signal=guard.signal_name or "SIGTERM")
        record(delayed.flush())
        watchdog.end()
        checkpointer.wait()
        log.event("end", number, **meter.totals(), **best.describe())

    # ---- What came of it -------------------------------------------------------------------------------------------
    if main_process:
        try_report(run_dir)
        say(f"data wait  {meter.totals()['data_wait_share']:.2%} of the training time")
        say(f"goodput    {log.goodput.describe()}")
        if (early or number == steps) and (text := best.lines(config.run_dir, kept=config.checkpoint.keep_best > 0)):
            say(text)
        say(setup.closing(config, number, steps, early))
    return 0 if early or number == steps else UNFINISHED


def _silent(*_: object, **__: object) -> None:
    """Other processes than the first say nothing."""


if __name__ == "__main__":
    run_command(main)
