"""What the switches of vLLM-Ascend's guides do here (docs/switches.md): each has an effect, or is named once."""
import json
import re

from gateway_case import COMPLETIONS
from harness import MODEL, Serve, TestCase, baton, free_port, http, metric

PROMPT = "The capital of Norway is"


def additional(**config):
    return ("--additional-config", json.dumps(config))


def started(*args, env=None):
    """What an engine says until it serves."""
    with Serve("--threads", "1", *args, env=env) as engine:
        return engine.output()


class Switches(TestCase):
    def refused(self, words, *args):
        code, _, err = baton("serve", MODEL, "--port", str(free_port()), *args)
        self.assertEqual(2, code, err)
        self.assertIn(words, err)

    def named(self, what, names, output):
        lines = [line for line in output.splitlines() if what in line]
        self.assertEqual(len(lines), 1 if names else 0, output)
        for name in names:
            self.assertEqual(lines[0].count(name), 1, lines[0])

    def test_the_scheduler_takes_whole_prompts_first(self):
        few = ("--max-num-batched-tokens", "256")
        self.refused("max-num-batched-tokens", *few, *additional(ascend_scheduler_config={"enabled": True}))
        started(*few, *additional(ascend_scheduler_config={"enabled": False, "long_prefill_token_threshold": -1}))
        said = started(*few, *additional(ascend_scheduler_config={"enabled": True, "chunked_prefill_enabled": True,
                                                                  "long_prefill_token_threshold": 64, "delay_factor": 0}))
        self.named("without effect on a CPU", ["ascend_scheduler_config.delay_factor"], said)
        self.refused("long_prefill_token_threshold", *additional(
            ascend_scheduler_config={"enabled": True, "chunked_prefill_enabled": True, "long_prefill_token_threshold": -1}))

    def test_steps_of_given_sizes_are_prepared(self):
        sizes = json.dumps({"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 4, 8]})
        prepared = "prepared steps of"
        self.assertIn("prepared steps of 1, 4, 8 sequences", started("--compilation-config", sizes))
        self.assertIn("prepared steps of 2, 3 sequences", started("--cudagraph-capture-sizes", "2", "3"))
        graph = additional(torchair_graph_config={"enabled": True, "graph_batch_sizes": [5]})
        self.assertIn("prepared steps of 5 sequences", started(*graph))
        self.assertNotIn(prepared, started(*graph, "--enforce-eager"))
        self.assertNotIn(prepared, started())
        self.assertNotIn(prepared, started("--compilation-config", '{"cudagraph_mode":"NONE","cudagraph_capture_sizes":[1]}'))
        self.assertNotIn(prepared, started(*additional(torchair_graph_config={"enabled": False, "graph_batch_sizes": [5]})))
        some = started(*additional(torchair_graph_config={"enabled": True, "use_cached_graph": True}), "--max-num-seqs", "5",
                       "--compilation-config", sizes, "--speculative-config",
                       '{"num_speculative_tokens":1,"method":"deepseek_mtp"}')
        self.assertIn("prepared steps of 1, 2, 4, 1, 4 sequences", some)
        self.assertIn("steps of 8 sequences are not prepared: --max-num-seqs", some)
        self.named("without effect on a CPU", ["torchair_graph_config.use_cached_graph"], some)
        self.refused("0 is no number of sequences", "--compilation-config", '{"cudagraph_capture_sizes":[0]}')
        self.refused("no list of whole numbers", "--compilation-config", '{"cudagraph_capture_sizes":["all"]}')
        self.refused("--cudagraph-capture-sizes", "--cudagraph-capture-sizes", "many")
        self.refused("--compilation-config", "--compilation-config", "{")
        self.refused("neither a JSON object nor a level", "--compilation-config", '"fast"')
        self.named("without effect on a CPU", ["compilation-config"], started("--compilation-config", "3"))
        self.refused("not a JSON object", "--additional-config", "[]")

    def test_what_is_always_so_is_said(self):
        said = started(*additional(enable_weight_nz_layout=True, enable_prefill_optimizations=True, torchair_graph_config={
            "enabled": False, "enable_multistream_moe": True, "enable_multistream_mla": True}))
        self.named("always so here", ["enable_weight_nz_layout", "enable_prefill_optimizations", "enable_multistream_moe",
                                      "enable_multistream_mla"], said)
        self.named("without effect", [], said)
        said = started(*additional(weight_nz_mode=0, multistream_overlap_shared_expert=False, enable_cpu_binding=True))
        self.named("cannot be switched off here", ["weight_nz_mode", "multistream_overlap_shared_expert"], said)
        self.named("without effect on a CPU", ["enable_cpu_binding"], said)

    def test_variables_for_npus_are_named(self):
        said = started(env={"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True", "HCCL_BUFFSIZE": "1024",
                            "VLLM_ASCEND_ENABLE_NZ": "1", "ASCEND_HOME_PATH": "/usr/local/Ascend"})
        self.named("variables without effect on a CPU", ["PYTORCH_NPU_ALLOC_CONF", "HCCL_BUFFSIZE", "VLLM_ASCEND_ENABLE_NZ"],
                   said)
        self.assertNotIn("ASCEND_HOME_PATH", said)

    def test_the_memory_share_is_that_of_the_cache(self):
        def blocks(share):
            with Serve("--threads", "1", "--max-num-seqs", "4096", "--max-num-batched-tokens", "4096",
                       "--gpu-memory-utilization", share) as engine:
                return int(re.search(r"KV cache: (\d+) blocks", engine.output()).group(1))

        few, many = blocks("0.002"), blocks("0.008")
        self.assertGreater(many, 2 * few)  # four times, of what is free at the moment

    def test_without_the_prefix_cache_nothing_is_found(self):
        for flag, hits in ("--enable-prefix-caching", True), ("--no-enable-prefix-caching", False):
            with Serve("--threads", "1", "--block-size", "4", flag) as engine:
                for _ in range(2):
                    http(engine.port, "POST", COMPLETIONS, {"prompt": PROMPT * 4, "max_tokens": 1})
                self.assertEqual(metric(engine.port, "vllm:prefix_cache_hits_total") > 0, hits)
