package names

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/portsnare/portsnare/detector"
)

// A reply answers one question; nil is silence.
type reply struct {
	rcode     dnsmessage.RCode
	names     []string
	truncated bool // over UDP; the names come over TCP
}

// A nameServer answers from zone, by the name of the question. It is reached
// over UDP and TCP on one port of the loopback.
type nameServer struct {
	zone  map[string]*reply
	addr  string
	asked chan struct{} // holds something once a question came
}

func serve(t *testing.T, zone map[string]*reply) *nameServer {
	t.Helper()
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", stream.Addr().String())
	if err != nil {
		stream.Close()
		t.Fatal(err)
	}
	s := &nameServer{zone: zone, addr: stream.Addr().String(), asked: make(chan struct{}, 1)}
	ended := make(chan struct{}, 2)
	go func() { s.packets(packets); ended <- struct{}{} }()
	go func() { s.streams(stream); ended <- struct{}{} }()
	t.Cleanup(func() {
		packets.Close()
		stream.Close()
		<-ended
		<-ended
	})
	return s
}

func (s *nameServer) packets(c net.PacketConn) {
	query := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(query)
		if err != nil {
			return
		}
		if response := s.respond(query[:n], true); response != nil {
			c.WriteTo(response, from) //nolint:errcheck // the resolver shows what it did not get
		}
	}
}

func (s *nameServer) streams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.stream(c)
		c.Close()
	}
}

func (s *nameServer) stream(c net.Conn) {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return
	}
	query := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, query); err != nil {
		return
	}
	response := s.respond(query, false)
	response = append(binary.BigEndian.AppendUint16(nil, uint16(len(response))), response...)
	c.Write(response) //nolint:errcheck // the resolver shows what it did not get
}

func (s *nameServer) respond(query []byte, packet bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	select {
	case s.asked <- struct{}{}:
	default:
	}
	r := s.zone[m.Questions[0].Name.String()]
	if r == nil {
		return nil
	}
	m.Response, m.RecursionAvailable, m.RCode = true, true, r.rcode
	m.Additionals = nil
	if m.Truncated = packet && r.truncated; !m.Truncated {
		for _, name := range r.names {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
				Body:   &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName(name)},
			})
		}
	}
	response, err := m.Pack()
	if err != nil {
		panic(err) // a zone that does not fit into a message
	}
	return response
}

// lookup is the system's, with s for its name server.
func (s *nameServer) lookup() func(context.Context, string) ([]string, error) {
	return lookupThrough(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, s.addr)
	})
}

// many returns n names, of 22 bytes each in an answer.
func many(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("h%06d.example.", i))
	}
	return names
}

func TestSystemLookupOfRealAnswers(t *testing.T) {
	server := serve(t, map[string]*reply{
		"7.113.0.203.in-addr.arpa.":                                         {names: []string{"Scanner.Example.NET."}},
		"8.113.0.203.in-addr.arpa.":                                         {rcode: dnsmessage.RCodeNameError},
		"9.113.0.203.in-addr.arpa.":                                         {names: []string{"c.example.", "b.example.", "d.example."}},
		"1.113.0.203.in-addr.arpa.":                                         {names: []string{"198.51.100.7."}},
		"2.113.0.203.in-addr.arpa.":                                         {names: []string{"x] blocked: [true] \n.example.", "a.example."}},
		"3.113.0.203.in-addr.arpa.":                                         {names: many(100), truncated: true},
		"4.113.0.203.in-addr.arpa.":                                         {names: many(2900), truncated: true},
		"5.113.0.203.in-addr.arpa.":                                         {rcode: dnsmessage.RCodeServerFailure},
		"6.113.0.203.in-addr.arpa.":                                         {names: []string{strings.Repeat(strings.Repeat("a", 61)+".", 4)}},
		"7.0.0.0." + strings.Repeat("0.", 20) + "8.b.d.0.1.0.0.2.ip6.arpa.": {names: []string{"six.example."}},
	})
	tests := map[string]struct {
		source string
		want   string
		stats  Stats
	}{
		"one name":                      {"203.0.113.7", "scanner.example.net", Stats{Lookups: 1}},
		"IPv6":                          {"2001:db8::7", "six.example", Stats{Lookups: 1}},
		"no such name":                  {"203.0.113.8", "", Stats{Lookups: 1}},
		"several names":                 {"203.0.113.9", "b.example", Stats{Lookups: 1}},
		"address for a name":            {"203.0.113.1", "", Stats{Lookups: 1, Failed: 1}}, // Go's resolver refuses it
		"forged fields beside a name":   {"203.0.113.2", "a.example", Stats{Lookups: 1}},
		"long answer over TCP":          {"203.0.113.3", "h000000.example", Stats{Lookups: 1}},
		"2900 names over TCP":           {"203.0.113.4", "", Stats{Lookups: 1, Failed: 1}},
		"server failure":                {"203.0.113.5", "", Stats{Lookups: 1, Failed: 1}},
		"longest labels within a limit": {"203.0.113.6", strings.TrimSuffix(strings.Repeat(strings.Repeat("a", 61)+".", 4), "."), Stats{Lookups: 1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{Within: time.Minute, Lookup: server.lookup()})
			s.Push([]detector.Event{probe(1, test.source)})
			s.Close()
			<-s.done
			got := s.delivered()
			if len(got) != 1 || got[0].Host != test.want {
				t.Errorf("delivered %v, want host %q", got, test.want)
			}
			if diff := cmp.Diff(test.stats, s.Stats()); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStopEndsALookupThatASilentServerHolds(t *testing.T) {
	server := serve(t, nil)
	s := start(t, Options{Within: time.Hour, Lookup: server.lookup()})
	s.Push([]detector.Event{probe(1, "203.0.113.7")})
	<-server.asked
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(3 * time.Second): // the resolver's own patience is five
		t.Error("the lookup outlived the stop")
		<-stopped
	}
	if got := s.delivered(); len(got) != 1 {
		t.Errorf("delivered %v, want event 1", got)
	}
}

func TestSystemLookupReadsTheHostsFile(t *testing.T) {
	// Every Debian has this line; no name server is asked.
	lookup := lookupThrough(func(context.Context, string, string) (net.Conn, error) {
		t.Error("a name server was asked for 127.0.0.1")
		return nil, io.EOF
	})
	got, err := lookup(t.Context(), "127.0.0.1")
	if err != nil || choose(got) == "" {
		t.Errorf("127.0.0.1 has the names %q (%v), want at least one", got, err)
	}
}
