package outputv1

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/portsnare/portsnare/detector"
)

var (
	arrival = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)

	// Addresses and prefixes have fields of their own that nobody else sees.
	compare = cmp.Options{
		cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{}),
		cmp.Comparer(func(a, b error) bool { return ErrorText(a) == ErrorText(b) }),
	}
)

func fullProbe() detector.Probe {
	return detector.Probe{
		At:        arrival,
		Source:    netip.MustParseAddrPort("203.0.113.7:40123"),
		Target:    netip.MustParseAddrPort("[fe80::1%eth0]:23"),
		Proto:     detector.TCP,
		Technique: detector.TechniqueXMAS,
		Header:    detector.HeaderFacts{Flags: detector.FIN | detector.PSH | detector.URG, TTL: 255, Window: 65535, IPID: 65535, Sequence: 1 << 31},
		IPOptions: detector.True,
		Proof:     detector.ProofHandshake,
		Interface: "eth0",
	}
}

func TestEventRoundTrip(t *testing.T) {
	tests := map[string]detector.Event{
		"everything": {
			At: arrival.Add(time.Second), Sequence: 1 << 63, Action: detector.ScanIgnored, Probe: fullProbe(),
			Ignored: detector.True, Triggered: detector.False, NoBlock: detector.True, Blocked: detector.False,
			Held: true, Host: "scanner.example", Lost: 1 << 40, Reason: "an operator said so",
			Acts: []detector.Act{
				{Kind: detector.ActRoute, Text: "/sbin/ip route add\tblackhole 203.0.113.7"},
				{Kind: detector.ActHostsDeny, Text: "ALL: 203.0.113.7", Present: true},
				{Kind: detector.ActCommand, Text: "/bin/false", Err: errors.New("exit status 1")},
				{Kind: detector.ActRoute, Err: detector.ErrNoTarget},
			},
		},
		"the end of a ban": {
			At: arrival, Sequence: 3, Action: detector.BanEnded,
			Ban: &detector.Ban{Source: netip.MustParsePrefix("2001:db8::/64"), Until: arrival, Origin: "operator"},
		},
		"the daemon itself": {At: arrival, Sequence: 1, Action: detector.DaemonStarted},
		"a target port alone": {
			At: arrival, Sequence: 2, Action: detector.AcceptFailed,
			Probe: detector.Probe{Target: netip.AddrPortFrom(netip.Addr{}, 23), Proto: detector.TCP},
		},
		"nothing at all": {},
	}
	for name, ev := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ToEvent(overWire(t, FromEvent(&ev)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ev, got, compare); diff != "" {
				t.Errorf("another event came out (-in +out):\n%s", diff)
			}
			for i := range got.Acts {
				if errors.Is(ev.Acts[i].Err, detector.ErrNoTarget) != errors.Is(got.Acts[i].Err, detector.ErrNoTarget) {
					t.Errorf("act %d has error %v, want %v", i, got.Acts[i].Err, ev.Acts[i].Err)
				}
			}
		})
	}
}

func TestBanRoundTrip(t *testing.T) {
	tests := map[string]detector.Ban{
		"everything": {
			Source: netip.MustParsePrefix("2001:db8:1::/64"), Until: arrival, Evidence: detector.ProvenTrap,
			Reason: "six ports", Origin: "portsnare", Probe: fullProbe(),
		},
		"until lifted": {Source: netip.MustParsePrefix("203.0.113.7/32"), Origin: "operator"},
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ToBan(overWire(t, FromBan(&b)))
			if diff := cmp.Diff(b, got, compare); err != nil || diff != "" {
				t.Errorf("another ban came out: %v (-in +out):\n%s", err, diff)
			}
		})
	}
}

func TestBanIsWrittenTheOneWay(t *testing.T) {
	tests := map[string]struct {
		source netip.Prefix
		want   string
	}{
		"host bits":           {netip.MustParsePrefix("203.0.113.7/24"), "203.0.113.0/24"},
		"IPv4 mapped":         {netip.MustParsePrefix("::ffff:203.0.113.7/128"), "203.0.113.7/32"},
		"IPv4 mapped network": {netip.MustParsePrefix("::ffff:203.0.113.7/120"), "203.0.113.0/24"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := FromBan(&detector.Ban{Source: tt.source}).GetSource(); got != tt.want {
				t.Errorf("a ban of %v is written %q, want %q", tt.source, got, tt.want)
			}
		})
	}
}

func TestEveryEnumValueHasOneOfTheProtocol(t *testing.T) {
	for a := range detector.BanEnded + 1 {
		if got, ok := fromWire[detector.Action](actions, toWire(actions, a)); !ok || got != a {
			t.Errorf("action %d becomes %d, %t", a, got, ok)
		}
	}
	for k := range detector.ActCommand + 1 {
		if got, ok := fromWire[detector.ActKind](actKinds, toWire(actKinds, k)); !ok || got != k {
			t.Errorf("act kind %d becomes %d, %t", k, got, ok)
		}
	}
	for e := range detector.ProvenTrap + 1 {
		if got, ok := fromWire[detector.Evidence](evidences, toWire(evidences, e)); !ok || got != e {
			t.Errorf("evidence %d becomes %d, %t", e, got, ok)
		}
	}
	for tri := range detector.True + 1 {
		if got, ok := fromWire[detector.Tri](tris, toWire(tris, tri)); !ok || got != tri {
			t.Errorf("tri %v becomes %v, %t", tri, got, ok)
		}
	}
	for technique := detector.Technique(1); technique.String() != "unknown"; technique++ {
		if got, ok := fromWire[detector.Technique](techniques, toWire(techniques, technique)); !ok || got != technique {
			t.Errorf("technique %v becomes %v, %t", technique, got, ok)
		}
	}
	for p := range detector.ProofHandshake + 1 {
		if got, ok := fromWire[detector.Proof](proofs, toWire(proofs, p)); !ok || got != p {
			t.Errorf("proof %d becomes %d, %t", p, got, ok)
		}
	}
}

func TestValuesOfALaterVersion(t *testing.T) {
	t.Run("action", func(t *testing.T) {
		for _, action := range []Action{Action_ACTION_UNSPECIFIED, 99, -1} {
			if _, err := ToEvent(&Event{Sequence: 5, Action: action}); !errors.Is(err, ErrUnknownAction) {
				t.Errorf("action %d: error %v, want %v", action, err, ErrUnknownAction)
			}
		}
	})
	t.Run("everything else", func(t *testing.T) {
		got, err := ToEvent(&Event{
			Action: Action_ACTION_SCAN_DETECTED, Blocked: 9,
			Probe: &Probe{Technique: 99, Proof: 99, IpOptions: -5, Protocol: 132},
			Acts:  []*Act{{Kind: 99, Text: "conjured"}, {Kind: ActKind_ACT_KIND_COMMAND, Text: "ran"}},
		})
		want := detector.Event{
			Probe: detector.Probe{Proto: 132},
			Acts:  []detector.Act{{Kind: detector.ActCommand, Text: "ran"}},
		}
		if diff := cmp.Diff(want, got, compare); err != nil || diff != "" {
			t.Errorf("unexpected event: %v (-want +got):\n%s", err, diff)
		}
	})
	t.Run("evidence", func(t *testing.T) {
		got, err := ToBan(&Ban{Source: "203.0.113.7/32", Evidence: 99})
		if err != nil || got.Evidence != detector.Forgeable {
			t.Errorf("evidence %v, %v; want the weakest", got.Evidence, err)
		}
	})
}

func TestProtocolIsBroken(t *testing.T) {
	probe := func(change func(*Probe)) func() error {
		return func() error {
			p := fullProbe()
			m := FromProbe(&p)
			change(m)
			_, err := ToEvent(&Event{Sequence: 7, Action: Action_ACTION_SCAN_DETECTED, Probe: m})
			return err
		}
	}
	ban := func(m *Ban) func() error {
		return func() error { _, err := ToBan(m); return err }
	}
	late := &timestamppb.Timestamp{Seconds: 1 << 60}
	tests := map[string]struct {
		read func() error
		want string // a part of the error
	}{
		"source port":      {probe(func(m *Probe) { m.SourcePort = 65536 }), "event 7: probe: source: port 65536 is above 65535"},
		"target port":      {probe(func(m *Probe) { m.TargetPort = 1 << 31 }), "target: port"},
		"source address":   {probe(func(m *Probe) { m.SourceAddress = "scanner.example" }), `source: ParseAddr("scanner.example")`},
		"long address":     {probe(func(m *Probe) { m.TargetAddress = "fe80::1%" + strings.Repeat("x", 1e6) }), "address of 1000008 bytes"},
		"crafted zone":     {probe(func(m *Probe) { m.SourceAddress = "fe80::1%a\nb" }), "control characters"},
		"protocol":         {probe(func(m *Probe) { m.Protocol = 256 }), "protocol 256"},
		"flags":            {probe(func(m *Probe) { m.Header.TcpFlags = 256 }), "TCP flags 256"},
		"TTL":              {probe(func(m *Probe) { m.Header.Ttl = 256 }), "TTL 256"},
		"window":           {probe(func(m *Probe) { m.Header.Window = 65536 }), "window 65536"},
		"IP ID":            {probe(func(m *Probe) { m.Header.IpId = 65536 }), "IP ID 65536"},
		"probe's time":     {probe(func(m *Probe) { m.At = late }), "probe: at: "},
		"event's time":     {func() error { _, err := ToEvent(&Event{Action: 1, At: late}); return err }, "event 0: at: "},
		"ban of an event":  {func() error { _, err := ToEvent(&Event{Action: 10, Ban: &Ban{}}); return err }, "event 0: ban: source: "},
		"no prefix":        {ban(&Ban{}), "ban: source: "},
		"bare address":     {ban(&Ban{Source: "203.0.113.7"}), "no '/'"},
		"host bits":        {ban(&Ban{Source: "203.0.113.7/24"}), "203.0.113.7/24 is to be written 203.0.113.0/24"},
		"IPv4 mapped":      {ban(&Ban{Source: "::ffff:203.0.113.7/128"}), "is to be written 203.0.113.7/32"},
		"zone in a prefix": {ban(&Ban{Source: "fe80::1%eth0/128"}), "zone"},
		"long prefix":      {ban(&Ban{Source: strings.Repeat("2", 1e6)}), "prefix of 1000000 bytes"},
		"end of a ban":     {ban(&Ban{Source: "203.0.113.7/32", Until: late}), "ban of 203.0.113.7/32: until: "},
		"probe of a ban":   {ban(&Ban{Source: "203.0.113.7/32", Probe: &Probe{Protocol: 999}}), "protocol 999"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.read(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestText(t *testing.T) {
	tests := map[string]struct {
		in    string
		limit int
		want  string
	}{
		"plain":                    {"six ports", 64, "six ports"},
		"a second line":            {"a\r\nb\u2028c\u2029d\x85", 64, "abcd\uFFFD"},
		"an escape sequence":       {"\x1b[2Jx\u009b1m", 64, "[2Jx1m"},
		"a tab":                    {"a\tb", 64, "a\tb"},
		"not UTF-8":                {"caf\xe9", 64, "caf\uFFFD"},
		"as long as allowed":       {"abcd", 4, "abcd"},
		"too long":                 {"abcde", 4, "abcd"},
		"a character at the limit": {"abc\u00e9", 4, "abc"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Text(tt.in, tt.limit); got != tt.want {
				t.Errorf("Text(%q, %d) = %q, want %q", tt.in, tt.limit, got, tt.want)
			}
		})
	}
}

func TestResultRoundTrip(t *testing.T) {
	tests := map[string]error{
		"in force":            nil,
		"failed":              errors.New("no such table"),
		"failed without text": errors.New(""),
		"failed unprintably":  errors.New("\x00"),
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ToResult(overWire(t, FromResult(want, nil)))
			if (err == nil) != (want == nil) || ErrorText(err) != ErrorText(want) {
				t.Errorf("%v became %v", want, err)
			}
		})
	}
	t.Run("more acts than allowed", func(t *testing.T) {
		acts, err := ToResult(FromResult(nil, make([]detector.Act, maxActs+1)))
		if err != nil || len(acts) != maxActs {
			t.Errorf("%d acts, %v; want %d", len(acts), err, maxActs)
		}
	})
}

// overWire returns what the other side makes of m's bytes.
func overWire[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatalf("marshalling %v: %v", m, err)
	}
	got := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(data, got); err != nil {
		t.Fatalf("unmarshalling %v: %v", m, err)
	}
	return got.(M)
}

// FuzzEventFromWire checks that whatever a peer sends is refused or made
// harmless: what is read can be written, and reads the same.
func FuzzEventFromWire(f *testing.F) {
	p := fullProbe()
	for _, ev := range []detector.Event{{}, {At: arrival, Sequence: 3, Probe: p, Host: "x", Acts: []detector.Act{{Text: "y"}}}} {
		data, err := proto.Marshal(FromEvent(&ev))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(Event)
		if proto.Unmarshal(data, m) != nil {
			return
		}
		ev, err := ToEvent(m)
		if err != nil {
			return
		}
		if len(ev.Host) > maxHost || len(ev.Reason) > maxText || len(ev.Acts) > maxActs || strings.ContainsAny(ev.Host+ev.Reason, "\r\n\x1b") {
			t.Errorf("%v is not within its bounds", ev)
		}
		again, err := ToEvent(overWire(t, FromEvent(&ev)))
		if diff := cmp.Diff(ev, again, compare); err != nil || diff != "" {
			t.Errorf("%v; reads another event when written (-first +second):\n%s", err, diff)
		}
	})
}

// FuzzBanFromWire does the same for bans.
func FuzzBanFromWire(f *testing.F) {
	p := fullProbe()
	data, err := proto.Marshal(FromBan(&detector.Ban{Source: netip.MustParsePrefix("203.0.113.0/24"), Until: arrival, Probe: p}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(Ban)
		if proto.Unmarshal(data, m) != nil {
			return
		}
		b, err := ToBan(m)
		if err != nil {
			return
		}
		if !b.Source.IsValid() || b.Source != b.Source.Masked() || b.Source.Addr().Is4In6() {
			t.Errorf("a ban of %v", b.Source)
		}
		again, err := ToBan(overWire(t, FromBan(&b)))
		if diff := cmp.Diff(b, again, compare); err != nil || diff != "" {
			t.Errorf("%v; reads another ban when written (-first +second):\n%s", err, diff)
		}
	})
}

// FuzzEventToWire checks that no event, whatever strangers had put into it, is
// refused by the other side, and that its numbers and addresses arrive.
func FuzzEventToWire(f *testing.F) {
	f.Add(uint64(1), uint8(0), int64(0), []byte{203, 0, 113, 7}, "", uint16(23), uint8(6), uint8(2), uint8(1), "host.example", "reason", "text", "")
	f.Add(uint64(2), uint8(1), int64(-1), netip.MustParseAddr("fe80::1").AsSlice(), "eth0", uint16(23), uint8(6), uint8(2), uint8(1), "h\x00", "\xff", "a\nb", "failed")
	f.Fuzz(func(t *testing.T, sequence uint64, action uint8, seconds int64, addr []byte, zone string, port uint16,
		protocol, technique, tri uint8, host, reason, text, failure string,
	) {
		source, _ := netip.AddrFromSlice(addr)
		source = source.WithZone(zone)
		ev := detector.Event{
			At: time.Unix(seconds, 0), Sequence: sequence, Action: detector.Action(action) % (detector.BanEnded + 1),
			Probe: detector.Probe{
				At: time.Unix(0, seconds), Source: netip.AddrPortFrom(source, port), Proto: detector.Proto(protocol),
				Technique: detector.Technique(technique), IPOptions: detector.Tri(tri), Interface: zone,
			},
			Host: host, Reason: reason,
			Acts: []detector.Act{{Kind: detector.ActCommand, Text: text, Err: ToError(failure)}},
		}
		got, err := ToEvent(overWire(t, FromEvent(&ev)))
		if err != nil {
			t.Fatal(err)
		}
		if got.Sequence != sequence || got.Action != ev.Action || got.Probe.Proto != ev.Probe.Proto {
			t.Errorf("sent %v, got %v", ev, got)
		}
		if want := source.Unmap().WithZone(""); got.Probe.Source.Addr().WithZone("") != want || got.Probe.Source.Port() != port {
			t.Errorf("source %v, want %v port %d", got.Probe.Source, want, port)
		}
		if (got.Acts[0].Err == nil) != (failure == "") || !utf8.ValidString(got.Host+got.Reason+got.Acts[0].Text) {
			t.Errorf("sent %v, got %v", ev, got)
		}
		if m := FromEvent(&got); !proto.Equal(m, overWire(t, FromEvent(&ev))) {
			t.Errorf("the second hop changes the event: %v, then %v", FromEvent(&ev), m)
		}
	})
}
