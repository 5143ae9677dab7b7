"""The files and batches of the test server (tests/support/openai_server.py)."""

import hashlib
import json
import time


class Cut(bytes):
    """A body that ends before its content-length: the connection goes."""


class Batches:
    """Answers to /files and /batches; OpenAIServer has the state."""

    def _files(self, method: str, parts: list[str], headers: dict, body: bytes) -> tuple[int, dict, dict | bytes]:
        if method == "POST":
            content = _multipart(headers["content-type"], body)
            name = f"file-{len(self.files)}"
            self.files[name] = content
            self.uploads.append(len(content))
            return (
                200,
                {},
                {
                    "id": name,
                    "object": "file",
                    "bytes": len(content),
                    "created_at": 1,
                    "filename": "b.jsonl",
                    "purpose": "batch",
                    "status": "processed",
                },
            )
        if not parts or parts[0] not in self.files:
            return 404, {}, error("No such File object", "not_found")
        if method == "DELETE":
            return 200, {}, {"id": parts[0], "object": "file", "deleted": True}
        return self._spoiled(parts[0])

    def _spoiled(self, name: str) -> tuple[int, dict, dict | bytes]:
        """A file, as the fault of its batch leaves it."""
        data, kind = self.files[name], {"content-type": "application/octet-stream"}
        whose = (b for b in self.batches.values() if name in (b.get("output_file_id"), b.get("error_file_id")))
        batch = next(whose, None)
        if batch is None or batch.get("looks", 9) > 3:
            return 200, kind, data
        part = data[: len(data) * 2 // 3]
        return {
            "cut": (200, kind, part),
            "html": (200, {"content-type": "text/html"}, b"<html>not yet</html>"),
            "torn": (200, kind | {"content-length": str(len(data))}, Cut(part)),
            "gone": (404, {}, error("No such File object", "not_found")),
        }.get(self.batch_faults.get(batch["number"]), (200, kind, data))

    def _found(self, batch: dict) -> dict:
        """A batch as it is shown: perhaps without its results."""
        batch["looks"] = batch.get("looks", 0) + (batch["status"] == "completed")
        fault = self.batch_faults.get(batch["number"])
        hidden = fault == "never" or fault == "late" and batch["looks"] <= 3
        return {k: v for k, v in _shown(batch).items() if not (hidden and k.endswith("put_file_id") and k[0] == "o")}

    def _batches(self, method: str, parts: list[str], body: bytes) -> tuple[int, dict, dict]:
        # Batches do their work, and are billed, whether anybody looks or not.
        for batch in self.batches.values():
            if batch["status"] == "in_progress" and time.monotonic() >= batch["ready"]:
                self._work_batch(batch)
        if method == "POST" and not parts:
            asked = json.loads(body)
            number = len(self.batches)
            batch = {
                "id": f"batch_{number}",
                "object": "batch",
                "endpoint": asked["endpoint"],
                "created_at": int(time.time()),
                "completion_window": "24h",
                "input_file_id": asked["input_file_id"],
                "status": "in_progress",
                "metadata": asked.get("metadata"),
                "number": number,
                "ready": time.monotonic() + self.batch_s,
            }
            self.batches[batch["id"]] = batch
            return 200, {}, _shown(batch)
        if not parts:
            return (
                200,
                {},
                {"object": "list", "data": [_shown(b) for b in reversed(self.batches.values())], "has_more": False},
            )
        if parts[0] not in self.batches:
            return 404, {}, error("No batch found", "not_found")
        return 200, {}, self._found(self.batches[parts[0]])

    def _work_batch(self, batch: dict) -> None:
        fault = self.batch_faults.get(batch["number"], "")
        lines = [json.loads(x) for x in self.files[batch["input_file_id"]].decode().splitlines() if x]
        ids = [x["custom_id"] for x in lines]
        if (
            fault == "enqueued"
            or fault == "invalid"
            or len(lines) > self.max_batch_requests
            or len(set(ids)) < len(ids)
        ):
            code = "token_limit_exceeded" if fault == "enqueued" else "invalid_request"
            batch |= {
                "status": "failed",
                "errors": {"object": "list", "data": [{"code": code, "message": f"{code}: too much"}]},
            }
            return
        cut = len(lines) // 2 if fault in ("expire", "cancel") else len(lines)
        done, errors = [], []
        for n, line in enumerate(lines[:cut]):
            key = body_key(line["body"])
            fault_of = self.faults.of(key, self.asked[key])
            self.asked[key] += 1
            if fault_of in self.inside:
                errors.append(_result(line, 200, n, self.inside[fault_of]))
            elif fault_of in self.transient:
                body = error("The server had an error", "server_error")
                errors.append(_result(line, 500, n, body))
            elif fault_of == "filter_400":
                errors.append(_result(line, 400, n, error("The response was filtered", "content_filter")))
            else:
                done.append(_result(line, 200, n, self.complete(line["body"], fault_of, line["custom_id"])))
        for line in lines[cut:]:
            errors.append(
                {
                    "id": "x",
                    "custom_id": line["custom_id"],
                    "response": None,
                    "error": {"code": "batch_expired", "message": "This request could not be executed"},
                }
            )
        done.reverse()  # results come in any order
        if fault == "status_text":
            for n, result in enumerate(done):
                result["response"]["status_code"] = ("200", 200.0, "200.0", None)[n % 4]
        if self.duplicate_results and done:
            done += [done[0], {**done[-1], "custom_id": "nobody-asked"}]
        for name, found in (("output_file_id", done), ("error_file_id", errors)):
            if found:
                batch[name] = f"file-{len(self.files)}"
                self.files[batch[name]] = "\n".join(json.dumps(x) for x in found).encode()
        batch["status"] = {"expire": "expired", "cancel": "cancelled"}.get(fault, "completed")
        batch["request_counts"] = {"total": len(lines), "completed": len(done), "failed": len(errors)}


def body_key(body: dict) -> str:
    """Identifies a request by what it says."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def error(message: str, code: str) -> dict:
    return {"error": {"message": message, "type": code, "code": code, "param": None}}


def _result(line: dict, status: int, n: int, body: dict) -> dict:
    return {
        "id": f"r{n}",
        "custom_id": line["custom_id"],
        "error": None,
        "response": {"status_code": status, "request_id": f"breq_{n}", "body": body},
    }


def _shown(batch: dict) -> dict:
    return {k: v for k, v in batch.items() if k not in ("number", "ready", "looks")}


def _multipart(content_type: str, body: bytes) -> bytes:
    mark = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    part = next(p for p in body.split(mark) if b'name="file"' in p)
    return part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
