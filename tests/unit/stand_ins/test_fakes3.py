"""FakeS3 answers botocore's client as S3 does, and fails as it is told to."""

import http.client
import io
import threading
import time

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.manager import TransferConfig, TransferManager

from fakes3 import MIN_PART_BYTES, FakeS3

BODY = bytes(range(100))
SPECIAL_CHARS = "a b+c%/<&>/ü?"


@pytest.fixture(scope="module")
def session():
    session = botocore.session.Session()
    session.set_credentials("key", "secret")
    return session


@pytest.fixture
def s3():
    server = FakeS3()
    yield server
    server.stop()


class Client:
    """Calls methods of botocore's client, all for one bucket."""

    def __init__(self, client) -> None:
        self.client = client

    def __getattr__(self, name):
        return lambda **params: getattr(self.client, name)(Bucket="bucket", **params)

    def refusal(self, name, **params):
        """The (status, code) of a call that fails."""
        with pytest.raises(ClientError) as caught:
            getattr(self, name)(**params)
        response = caught.value.response
        return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]

    def keys(self, **params):
        answer = self.list_objects_v2(**params)
        keys = [item["Key"] for item in answer.get("Contents", ())]
        assert answer["KeyCount"] == len(keys) + len(prefixes(answer))
        return keys


@pytest.fixture
def client(s3, session):
    config = Config(
        connect_timeout=2,
        read_timeout=2,
        retries={"mode": "standard", "total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"},
    )
    return Client(
        session.create_client("s3", region_name="eu-west-1", endpoint_url=s3.url, config=config)
    )


def prefixes(answer):
    return [item["Prefix"] for item in answer.get("CommonPrefixes", ())]


class TestObjects:
    @pytest.mark.parametrize("key", ["plain", SPECIAL_CHARS])
    def test_put_and_get(self, s3, client, key):
        before = int(time.time())
        put = client.put_object(Key=key, Body=BODY)
        got = client.get_object(Key=key)
        assert got["Body"].read() == BODY and s3.objects == {key: BODY}
        assert got["ETag"] == put["ETag"] == client.head_object(Key=key)["ETag"]
        assert before <= got["LastModified"].timestamp() <= s3.modified[key] <= time.time()
        assert s3.requests == [("PUT", key), ("GET", key), ("HEAD", key)] and s3.served == 3

    def test_put_with_expect_100_continue(self, s3, client):
        client.put_object(Key="k", Body=io.BytesIO(BODY))  # of a file: botocore sends Expect
        assert s3.objects == {"k": BODY}
        connection = http.client.HTTPConnection(s3.url.removeprefix("http://"), timeout=2)
        connection.putrequest("PUT", "/bucket/raw")
        connection.putheader("Content-Length", str(len(BODY)))
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        assert connection.sock.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.send(BODY)
        assert connection.getresponse().status == 200 and s3.objects["raw"] == BODY
        connection.close()

    def test_conditional_put_keeps_an_existing_object(self, s3, client):
        client.put_object(Key="k", Body=BODY, IfNoneMatch="*")
        refusal = client.refusal("put_object", Key="k", Body=b"other", IfNoneMatch="*")
        assert refusal == (412, "PreconditionFailed") and s3.objects == {"k": BODY}

    def test_error_codes_of_missing_key_and_bucket(self, s3, client):
        assert client.refusal("get_object", Key="k") == (404, "NoSuchKey")
        assert client.refusal("head_object", Key="k") == (404, "404")
        s3.fail("NoSuchBucket")
        assert client.refusal("get_object", Key="k") == (404, "NoSuchBucket")

    def test_unknown_call_is_not_implemented(self, client):
        assert client.refusal("get_bucket_acl") == (501, "NotImplemented")

    def test_delete(self, s3, client):
        s3.objects.update(dict.fromkeys(("a", "b", SPECIAL_CHARS, "left"), BODY))
        for _ in range(2):  # the second finds nothing
            assert client.delete_object(Key="a")["ResponseMetadata"]["HTTPStatusCode"] == 204
        order = {"Objects": [{"Key": "b"}, {"Key": SPECIAL_CHARS}, {"Key": "absent"}]}
        assert client.delete_objects(Delete=order)["Deleted"] == order["Objects"]
        assert "Deleted" not in client.delete_objects(Delete={**order, "Quiet": True})
        assert s3.objects == {"left": BODY} and list(s3.modified) == ["left"]
        assert s3.requests == [("DELETE", "a")] * 2 + [("POST", "?delete")] * 2

    def test_delete_of_more_than_1000_keys(self, s3, client):
        order = {"Objects": [{"Key": str(n)} for n in range(1001)]}
        assert client.refusal("delete_objects", Delete=order) == (400, "MalformedXML")


class TestRanges:
    @pytest.mark.parametrize(
        "requested, start, end",
        [
            ("0-0", 0, 1),
            ("10-19", 10, 20),
            ("90-1000", 90, 100),
            ("99-", 99, 100),
            ("0-", 0, 100),
            ("-1", 99, 100),
            ("-1000", 0, 100),
        ],
    )
    def test_range(self, s3, client, requested, start, end):
        s3.objects["k"] = BODY
        got = client.get_object(Key="k", Range=f"bytes={requested}")
        assert got["Body"].read() == BODY[start:end] and got["ContentLength"] == end - start
        assert got["ContentRange"] == f"bytes {start}-{end - 1}/100"
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert got["ETag"] == client.get_object(Key="k")["ETag"]

    @pytest.mark.parametrize("requested", ["100-", "100-200", "-0"])
    def test_range_after_the_end(self, s3, client, requested):
        s3.objects["k"] = BODY
        refusal = client.refusal("get_object", Key="k", Range=f"bytes={requested}")
        assert refusal == (416, "InvalidRange")
        assert client.refusal("get_object", Key="absent", Range="bytes=5-") == (404, "NoSuchKey")

    @pytest.mark.parametrize("requested", ["bytes=9-8", "bytes=-", "lines=1-2", "bytes=0-1,3-4"])
    def test_invalid_range_is_ignored(self, s3, client, requested):
        s3.objects["k"] = BODY
        got = client.get_object(Key="k", Range=requested)
        assert got["Body"].read() == BODY and "ContentRange" not in got

    def test_damage(self, s3, client):
        s3.objects["k"] = BODY
        s3.fail("flip")
        assert client.get_object(Key="k", Range="bytes=10-19")["Body"].read() == (
            BODY[10:19] + bytes([BODY[19] ^ 1])
        )
        s3.fail("truncate")
        got = client.get_object(Key="k", Range="bytes=10-19")
        assert got["Body"].read() == BODY[10:15] and got["ContentRange"] == "bytes 10-14/15"
        s3.fail("die")
        got = client.get_object(Key="k", Range="bytes=10-19")
        assert got["ContentLength"] == 10
        with pytest.raises(BotoCoreError):
            got["Body"].read()


class TestLists:
    def test_listed_fields(self, s3, client):
        s3.objects[SPECIAL_CHARS] = BODY
        s3.modified[SPECIAL_CHARS] = 1_700_000_000.75
        (item,) = client.list_objects_v2(Prefix="a b+")["Contents"]
        assert item["Key"] == SPECIAL_CHARS and item["Size"] == 100
        assert item["LastModified"].timestamp() == 1_700_000_000
        assert item["ETag"] == client.get_object(Key=SPECIAL_CHARS)["ETag"]
        assert s3.requests[0] == ("GET", "?list a b+")

    def test_prefix_and_start_after(self, s3, client):
        s3.objects.update(dict.fromkeys(["b/2", "a", "b/1", "b", "b/", "c"], BODY))
        assert client.keys() == ["a", "b", "b/", "b/1", "b/2", "c"]
        assert client.keys(Prefix="b/") == ["b/", "b/1", "b/2"]
        assert client.keys(Prefix="b/", StartAfter="b/1") == ["b/2"]
        assert client.keys(Prefix="z") == []
        assert client.keys(MaxKeys=0) == []
        assert client.keys(MaxKeys=2) == ["a", "b"]

    def test_pages(self, s3, client):
        keys = [f"{n:04}" for n in range(2001)]
        s3.objects.update(dict.fromkeys(reversed(keys), b""))
        pages = list(client.client.get_paginator("list_objects_v2").paginate(Bucket="bucket"))
        assert [len(page["Contents"]) for page in pages] == [1000, 1000, 1]
        assert [page["IsTruncated"] for page in pages] == [True, True, False]
        assert [item["Key"] for page in pages for item in page["Contents"]] == keys
        assert s3.requests == [("GET", "?list ")] * 3
        wrong = client.refusal("list_objects_v2", ContinuationToken="wrong")
        assert wrong == (400, "InvalidArgument")

    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    def test_delimiter(self, s3, client, size):
        s3.objects.update(dict.fromkeys(["p/a/1", "p/a/2", "p/b", "p/c/", "p/c/1/2", "q/1"], BODY))
        pages = client.client.get_paginator("list_objects_v2").paginate(
            Bucket="bucket", Prefix="p/", Delimiter="/", PaginationConfig={"PageSize": size}
        )
        pages = list(pages)
        assert len(pages) == -(-3 // size)
        assert [p for page in pages for p in prefixes(page)] == ["p/a/", "p/c/"]
        assert [i["Key"] for page in pages for i in page.get("Contents", ())] == ["p/b"]

    def test_listings_fail_and_are_not_damaged(self, s3, client):
        s3.objects["k"] = BODY
        for damage in ("flip", "truncate", "die"):
            s3.fail(damage)
            assert client.keys() == ["k"]
        s3.faulty = lambda method, key: key.startswith("?list")
        s3.fail("503")
        assert client.refusal("list_objects_v2") == (503, "SlowDown")
        assert client.get_object(Key="k")["Body"].read() == BODY


class Stream:
    """A body for s3transfer that can only be read, like a pipe."""

    def __init__(self, data) -> None:
        self.read = io.BytesIO(data).read


class TestMultipart:
    def test_upload_of_a_stream_through_s3transfer(self, s3, client):
        body = bytes(range(256)) * (20_000_000 // 256)
        config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20)
        with TransferManager(client.client, config) as transfers:
            transfers.upload(Stream(body), "bucket", SPECIAL_CHARS).result()
        assert s3.objects == {SPECIAL_CHARS: body} and s3.uploads == {}
        assert s3.requests[0] == s3.requests[-1] == ("POST", SPECIAL_CHARS)
        assert s3.requests[1:-1] == [("PUT", SPECIAL_CHARS)] * 3

    def test_failed_part_aborts_the_upload(self, s3, client):
        s3.fail_nth(3, "500")
        with TransferManager(client.client) as transfers, pytest.raises(ClientError):
            transfers.upload(Stream(bytes(20 << 20)), "bucket", "k").result()
        assert s3.requests[-1] == ("DELETE", "k") and s3.objects == s3.uploads == {}

    def test_unfinished_uploads_are_listed_and_aborted(self, s3, client):
        ids = {
            key: client.create_multipart_upload(Key=key)["UploadId"] for key in ("p/2", "p/1", "q")
        }
        assert {n: upload.key for n, upload in s3.uploads.items()} == {n: k for k, n in ids.items()}
        found = client.list_multipart_uploads(Prefix="p/")["Uploads"]
        assert [(f["Key"], f["UploadId"]) for f in found] == [(k, ids[k]) for k in ("p/1", "p/2")]
        assert abs(found[0]["Initiated"].timestamp() - time.time()) < 60
        assert s3.requests[-1] == ("GET", "?uploads p/")
        client.abort_multipart_upload(Key="q", UploadId=ids["q"])
        assert ids["q"] not in s3.uploads and s3.requests[-1] == ("DELETE", "q")
        refusal = client.refusal("abort_multipart_upload", Key="q", UploadId=ids["q"])
        assert refusal == (404, "NoSuchUpload")
        refusal = client.refusal("upload_part", Key="p/2", UploadId=ids["p/1"], PartNumber=1)
        assert refusal == (404, "NoSuchUpload")

    @pytest.fixture
    def complete(self, client):
        """complete(part numbers): completes an upload of the parts 1 and 3; 3 is smaller."""
        upload = client.create_multipart_upload(Key="k")["UploadId"]
        bodies = {1: bytes(MIN_PART_BYTES), 3: BODY}
        etags = {}
        for number, body in bodies.items():
            part = {"Key": "k", "UploadId": upload, "PartNumber": number, "Body": body}
            etags[number] = client.upload_part(**part)["ETag"]

        def complete(*numbers, call=client.complete_multipart_upload, **etag_of):
            parts = [
                {"PartNumber": n, "ETag": etag_of.get("etag") or etags.get(n, "none")}
                for n in numbers
            ]
            return call(Key="k", UploadId=upload, MultipartUpload={"Parts": parts})

        return complete

    def test_complete_upload(self, s3, client, complete):
        etag = complete(1, 3)["ETag"]
        assert s3.objects == {"k": bytes(MIN_PART_BYTES) + BODY} and s3.uploads == {}
        assert client.head_object(Key="k")["ETag"] == etag and "k" in s3.modified

    @pytest.mark.parametrize(
        "numbers, etag, code",
        [
            ((3, 1), None, "InvalidPartOrder"),
            ((1, 2), None, "InvalidPart"),
            ((1, 3), "wrong", "InvalidPart"),
            ((3, 4), None, "InvalidPart"),
            ((), None, "MalformedXML"),
        ],
    )
    def test_complete_upload_with_wrong_parts(self, s3, client, complete, numbers, etag, code):
        def call(**params):
            return client.refusal("complete_multipart_upload", **params)

        assert complete(*numbers, call=call, etag=etag) == (400, code)
        assert s3.objects == {} and len(s3.uploads) == 1

    def test_complete_upload_with_a_small_part(self, s3, client):
        upload = {"Key": "k", "UploadId": client.create_multipart_upload(Key="k")["UploadId"]}
        parts = [
            {"PartNumber": n, "ETag": client.upload_part(PartNumber=n, Body=BODY, **upload)["ETag"]}
            for n in (1, 2)
        ]
        refusal = client.refusal(
            "complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload
        )
        assert refusal == (400, "EntityTooSmall")


class TestFailNth:
    def test_one_request_fails(self, s3, client):
        s3.objects["k"] = BODY
        client.get_object(Key="k")["Body"].read()
        s3.faulty = lambda method, key: False
        s3.fail_nth(2, "503")
        s3.fail_nth(3, "flip")
        s3.fail_nth(5, "NoSuchBucket")
        client.keys()
        assert client.refusal("get_object", Key="k") == (503, "SlowDown")
        assert client.get_object(Key="k")["Body"].read() != BODY
        assert client.get_object(Key="k")["Body"].read() == BODY
        assert client.refusal("list_objects_v2") == (404, "NoSuchBucket")
        assert client.keys() == ["k"] and s3.served == 7

    def test_refuse_closes_the_connection_only(self, s3, client):
        s3.fail_nth(1, "refuse")
        with pytest.raises(BotoCoreError):
            client.list_objects_v2()
        assert client.keys() == []

    def test_requests_of_many_threads(self, s3, client):
        s3.objects["k"] = BODY
        s3.fail_nth(20, "403")
        errors = []

        def get():
            for _ in range(10):
                try:
                    client.get_object(Key="k")["Body"].read()
                except ClientError as error:
                    errors.append(error.response["Error"]["Code"])

        threads = [threading.Thread(target=get) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == ["AccessDenied"] and s3.served == len(s3.requests) == 40
