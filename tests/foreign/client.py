"""A client of Haulage's gRPC interface that shares no code with it: it asks the server what it speaks (reflection).

    client.py ADDRESS submit PIPELINE_FILE BASE     prints the run id and the disposition
    client.py ADDRESS watch RUN                     prints one line per message until the run is at rest
    client.py ADDRESS get RUN                       prints state and counts
    client.py ADDRESS cancel RUN REASON
    client.py ADDRESS health                        prints the standard health service's status
    client.py ADDRESS services                      prints what reflection lists

One JSON object a line. Errors: exit code 1 and {"error": CODE, "message": ...}.
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2

# reflection.v1 and v1alpha have the same messages; the current name of the service is v1.
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SERVICE = "haulage.v1.Haulage"
DEADLINE = 60


class Client:
    """Stubs made from what the server says about itself."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.pool = descriptor_pool.DescriptorPool()
        self.known = set()

    def reflect(self, **question):
        """One question to the reflection service."""
        method = self.channel.stream_stream(
            REFLECTION,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answer = next(method(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=DEADLINE))
        if answer.HasField("error_response"):
            sys.exit(f"reflection: {answer.error_response.error_message}")
        return answer

    def learn(self, **question) -> None:
        """Takes the files that answer a question, and what they import, into the pool."""
        for data in self.reflect(**question).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            if file.name in self.known:
                continue
            self.known.add(file.name)
            for name in file.dependency:
                self.learn(file_by_filename=name)
            self.pool.Add(file)

    def call(self, service: str, method: str, request: dict):
        """Calls a method; yields its messages as they come."""
        self.learn(file_containing_symbol=service)
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        ask = message_factory.GetMessageClass(found.input_type)
        answer = message_factory.GetMessageClass(found.output_type)
        kind = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        stub = kind(
            f"/{service}/{method}",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        result = stub(json_format.ParseDict(request, ask()), timeout=DEADLINE)
        if found.server_streaming:
            yield from result
        else:
            yield result


def show(message) -> None:
    """One JSON line; enum values by name, 64-bit numbers as text, as protobuf's JSON form has it."""
    text = json_format.MessageToDict(message, preserving_proto_field_name=True)
    print(json.dumps(text), flush=True)


def main(arguments: list[str]) -> None:
    """Entry point."""
    address, verb, rest = arguments[0], arguments[1], arguments[2:]
    client = Client(address)
    if verb == "services":
        services = client.reflect(list_services="").list_services_response.service
        print(json.dumps(sorted(service.name for service in services)))
        return
    if verb == "submit":
        with open(rest[0], encoding="utf-8") as file:
            definition = file.read()
        request = {"definition": definition, "file": rest[0], "base": rest[1]}
        messages = client.call(SERVICE, "Submit", request)
    elif verb == "watch":
        messages = client.call(SERVICE, "Watch", {"run_id": rest[0]})
    elif verb == "get":
        messages = client.call(SERVICE, "GetRun", {"run_id": rest[0]})
    elif verb == "cancel":
        messages = client.call(SERVICE, "Cancel", {"run_id": rest[0], "reason": rest[1]})
    elif verb == "health":
        messages = client.call("grpc.health.v1.Health", "Check", {"service": ""})
    else:
        sys.exit(__doc__)
    try:
        for message in messages:
            show(message)
    except grpc.RpcError as error:
        print(json.dumps({"error": error.code().name, "message": error.details()}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
