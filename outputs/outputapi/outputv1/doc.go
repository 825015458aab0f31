// Package outputv1 is version 1 of the protocol between Portsnare and its output
// modules, as Go code: what protoc makes of output.proto, and the conversions to
// and from the types of package detector.
//
// output.proto is the contract, and its comments are the documentation. After a
// change run "go generate" here with protoc and the two generators in PATH:
//
//	apt-get install protobuf-compiler libprotobuf-dev
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//	go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
//
// Whatever comes from the other side is checked here: values out of range are
// errors, text is cut and loses its control characters, and enum values that a
// later version added are taken for unknown.
package outputv1

//go:generate protoc --proto_path=. --go_out=paths=source_relative:. --go-grpc_out=paths=source_relative:. output.proto
//go:generate protoc --proto_path=. --python_out=../../../examples/python output.proto
