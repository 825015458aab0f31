package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/detector"
)

// dialogue is a conversation, written as "SOURCE > TARGET KIND", where KIND is one
// of the names below.
type dialogue string

// surveyOf counts conversations, each as often as stated, and works them out.
func surveyOf(t *testing.T, given []netip.Addr, talks ...dialogue) *Survey {
	t.Helper()
	s := newSurveyor(given)
	for _, line := range talks {
		var a, b, kind string
		n := 1
		if _, err := fmt.Sscanf(strings.ReplaceAll(string(line), " > ", " "), "%s %s %s %d", &a, &b, &kind, &n); err != nil && n != 1 {
			t.Fatalf("%s: %v", line, err)
		}
		for i := range n {
			conversation(s, endpoint(a, 40000+uint16(i)), endpoint(b, 80), kind)
		}
	}
	return s.survey()
}

func endpoint(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

func conversation(s *surveyor, client, server netip.AddrPort, kind string) {
	send := func(from, to netip.AddrPort, proto detector.Proto, flags detector.TCPFlags) {
		s.count(&detector.Probe{Source: from, Target: to, Proto: proto, Header: detector.HeaderFacts{Flags: flags}}, kind == "to-group")
	}
	const syn, synACK, rst, ack = detector.SYN, detector.SYN | detector.ACK, detector.RST | detector.ACK, detector.ACK
	switch kind {
	case "refused": // a connection, or a probe to a closed port
		send(client, server, detector.TCP, syn)
		send(server, client, detector.TCP, rst)
	case "dropped":
		send(client, server, detector.TCP, syn)
	case "connected":
		send(client, server, detector.TCP, syn)
		send(server, client, detector.TCP, synACK)
		send(client, server, detector.TCP, ack)
	case "asked": // a datagram with its answer
		send(client, server, detector.UDP, 0)
		send(server, client, detector.UDP, 0)
	case "told", "to-group": // a datagram without
		send(client, server, detector.UDP, 0)
	}
}

func TestWorkOutLocal(t *testing.T) {
	tests := map[string]struct {
		talks []dialogue
		want  string
	}{
		"nothing":                       {},
		"one scanner, one host":         {talks: []dialogue{"192.0.2.9 > 192.0.2.1 refused 5"}, want: "192.0.2.1"},
		"the same, the other way round": {talks: []dialogue{"192.0.2.1 > 192.0.2.9 refused 5"}, want: "192.0.2.9"},
		"the host drops everything":     {talks: []dialogue{"192.0.2.1 > 192.0.2.9 dropped 5"}, want: "192.0.2.9"},
		"a UDP scan with some answers":  {talks: []dialogue{"192.0.2.1 > 192.0.2.9 told 5", "192.0.2.1 > 192.0.2.9 asked 2"}, want: "192.0.2.9"},
		"many scanners": {
			talks: []dialogue{"198.51.100.1 > 192.0.2.1 refused 2", "198.51.100.2 > 192.0.2.1 refused 2", "198.51.100.3 > 192.0.2.1 refused 2"},
			want:  "192.0.2.1",
		},
		"a client that is scanned once": {
			talks: []dialogue{
				"192.0.2.1 > 198.51.100.1 connected 20", "192.0.2.1 > 198.51.100.2 connected 30",
				"192.0.2.1 > 198.51.100.53 asked 50", "203.0.113.7 > 192.0.2.1 refused 3",
			},
			want: "192.0.2.1",
		},
		"a client with some failures": {
			talks: []dialogue{"192.0.2.1 > 198.51.100.1 connected 9", "192.0.2.1 > 198.51.100.2 refused 3"},
			want:  "192.0.2.1",
		},
		"a host that streams to one client": {
			talks: []dialogue{"203.0.113.7 > 192.0.2.1 asked", "192.0.2.1 > 203.0.113.7 told 50", "203.0.113.8 > 192.0.2.1 refused 3"},
			want:  "192.0.2.1",
		},
		"one scanner, several addresses": {
			talks: []dialogue{"203.0.113.7 > 192.0.2.1 refused 9", "203.0.113.7 > 192.0.2.2 refused 8", "203.0.113.7 > 192.0.2.3 dropped 9"},
			want:  "192.0.2.1 192.0.2.2 192.0.2.3",
		},
		"both families": {
			talks: []dialogue{"203.0.113.7 > 192.0.2.1 refused 9", "2001:db8::7 > 2001:db8::1 refused 3"},
			want:  "192.0.2.1 2001:db8::1",
		},
		"only a client in the other family": {
			talks: []dialogue{
				"203.0.113.7 > 192.0.2.1 refused 9",
				"2001:db8::1 > 2001:db8:53::1 asked 3", "2001:db8::1 > 2001:db8:80::1 connected", "2001:db8::1 > 2001:db8:80::2 refused",
			},
			want: "192.0.2.1 2001:db8::1",
		},
		"link-local beside global": {
			talks: []dialogue{"2001:db8::7 > 2001:db8::1 refused 9", "fe80::7 > fe80::1 refused 3"},
			want:  "2001:db8::1 fe80::1",
		},
		"strangers on a shared wire": {
			talks: []dialogue{"203.0.113.7 > 192.0.2.1 refused 9", "192.0.2.4 > 192.0.2.5 connected 2"},
			want:  "192.0.2.1",
		},
		"broadcast and multicast": {
			talks: []dialogue{
				"203.0.113.7 > 192.0.2.1 refused 2", "192.0.2.4 > 255.255.255.255 told 9",
				"192.0.2.4 > 224.0.0.251 told 9", "192.0.2.4 > 192.0.2.255 to-group 9", "fe80::4 > ff02::fb told 9",
			},
			want: "192.0.2.1",
		},
		"loopback beside the wire": {
			talks: []dialogue{"203.0.113.7 > 192.0.2.1 refused 9", "127.0.0.1 > 127.0.0.1 connected"},
			want:  "127.0.0.1 192.0.2.1",
		},
		"nothing but ties": {
			talks: []dialogue{"192.0.2.2 > 192.0.2.1 asked", "192.0.2.4 > 192.0.2.3 asked"},
			want:  "192.0.2.1",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for range 5 { // maps have no order
				got := strings.Trim(fmt.Sprint(surveyOf(t, nil, tt.talks...).Local()), "[]")
				if got != tt.want {
					t.Fatalf("local addresses %q, want %q", got, tt.want)
				}
			}
		})
	}
}

func TestSurveyInUse(t *testing.T) {
	local := netip.MustParseAddr("192.0.2.1")
	tests := map[string]struct {
		talk  dialogue
		proto detector.Proto
		want  bool
	}{
		"accepted":          {"203.0.113.7 > 192.0.2.1 connected", detector.TCP, true},
		"accepted, not UDP": {"203.0.113.7 > 192.0.2.1 connected", detector.UDP, false},
		"refused":           {"203.0.113.7 > 192.0.2.1 refused", detector.TCP, false},
		"dropped":           {"203.0.113.7 > 192.0.2.1 dropped", detector.TCP, false},
		"answered":          {"203.0.113.7 > 192.0.2.1 asked", detector.UDP, true},
		"not answered":      {"203.0.113.7 > 192.0.2.1 told", detector.UDP, false},
		"forged answer":     {"192.0.2.1 > 192.0.2.1 asked", detector.UDP, false},
	}
	for name, tt := range tests {
		for _, given := range [][]netip.Addr{nil, {local}} {
			t.Run(fmt.Sprintf("%s, local %v", name, given), func(t *testing.T) {
				s := surveyOf(t, given, tt.talk)
				if got := s.InUse(tt.proto, netip.AddrPortFrom(local, 80)); got != tt.want {
					t.Errorf("%s: port 80 in use: %v, want %v", tt.talk, got, tt.want)
				}
				if s.InUse(tt.proto, endpoint("203.0.113.7", 40000)) {
					t.Errorf("%s: a stranger's port is a service", tt.talk)
				}
			})
		}
	}
	loopback := surveyOf(t, nil, "127.0.0.1 > 127.0.0.1 asked")
	if !loopback.InUse(detector.UDP, endpoint("127.0.0.1", 80)) {
		t.Error("on the loopback, an answering port is not in use")
	}
}

// TestSurveyIsBounded floods a survey from more addresses than it remembers.
func TestSurveyIsBounded(t *testing.T) {
	s := newSurveyor(nil)
	target := endpoint("192.0.2.1", 80)
	for i := range uint32(maxPairs + 1000) {
		source := netip.AddrPortFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 198<<24|i))), 53)
		conversation(s, source, target, "told")
	}
	if len(s.pairs) != maxPairs || len(s.services) != maxServices {
		t.Errorf("%d pairs and %d services remembered, want %d and %d", len(s.pairs), len(s.services), maxPairs, maxServices)
	}
	survey := s.survey()
	if want := []netip.Addr{target.Addr()}; !slices.Equal(survey.Local(), want) {
		t.Errorf("local addresses %v, want %v", survey.Local(), want)
	}
	if survey.Uncounted() != 2000 {
		t.Errorf("%d packets uncounted, want 2000", survey.Uncounted())
	}
}

func TestSurveyHasFewLocals(t *testing.T) {
	var talks []dialogue
	for i := range maxLocal + 10 {
		talks = append(talks, dialogue(fmt.Sprintf("203.0.113.7 > 192.0.2.%d refused", i)))
	}
	if got := surveyOf(t, nil, talks...).Local(); len(got) != maxLocal {
		t.Errorf("%d local addresses, want %d", len(got), maxLocal)
	}
}

// TestInspectDamaged: the survey ends where the capture does.
func TestInspectDamaged(t *testing.T) {
	whole := readFixture(t, "nmap-sS-ipv4.pcap")
	survey, err := Inspect(t.Context(), bytes.NewReader(whole[:len(whole)-1]))
	if err != nil || !slices.Equal(survey.Local(), []netip.Addr{target4}) {
		t.Errorf("survey of %v, %v, want of %v", survey.Local(), err, target4)
	}
	if _, err := Inspect(t.Context(), bytes.NewReader(whole[:10])); err == nil {
		t.Error("half a file header is a capture")
	}
}
