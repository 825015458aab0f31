// Package nettest gives a test two hosts on a wire of their own, so that
// programs that need a network, raw sockets or root can be tested for real
// without touching the machine they run on.
//
// A test package opts in with
//
//	func TestMain(m *testing.M) { nettest.Main(m) }
//
// and asks for hosts with [NewPair]. It needs root or user namespaces, and the
// programs ip and nsenter (Debian: iproute2, util-linux); where something is
// missing the tests fail and say what to do.
package nettest
