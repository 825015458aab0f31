package blockfile

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

var (
	v4      = netip.MustParseAddr("203.0.113.7")
	v4Other = netip.MustParseAddr("198.51.100.66")
	v6      = netip.MustParseAddr("2001:db8::7")
)

// The same sources as PortSentry 2 has them.
var (
	bytes4      = family(2) + "\xcb\x00\x71\x07"
	bytes4Other = family(2) + "\xc6\x33\x64\x42"
	bytes6      = family(10) + "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07"
)

// family returns an address family as the C structures of this machine have it.
func family(number uint16) string {
	return string(binary.NativeEndian.AppendUint16(nil, number))
}

// The same sources as PortSentry 1.2 has them.
const (
	line4      = "1795333205 - 11/22/2026 07:40:05 Host: attacker.example.org/203.0.113.7 Port: 101 TCP Blocked\n"
	line4Other = "1795333205 - 11/22/2026 07:40:05 Host: 198.51.100.66/198.51.100.66 Port: 101 TCP Blocked\n"
	line6      = "1795333205 - 11/22/2026 07:40:05 Host: 2001:db8::7/2001:db8::7 Port: 101 TCP Blocked\n"
)

func blocked(source netip.Addr, host string) logline.Blocked {
	return logline.Blocked{
		At:     time.Unix(1795333205, 0).UTC(),
		Source: source,
		Host:   host,
		Proto:  detector.TCP,
		Port:   101,
	}
}

// bare returns what PortSentry 2 says of each source.
func bare(sources ...netip.Addr) []logline.Blocked {
	var all []logline.Blocked
	for _, source := range sources {
		all = append(all, logline.Blocked{Source: source})
	}
	return all
}

func TestRead(t *testing.T) {
	full := []logline.Blocked{blocked(v4, "attacker.example.org"), blocked(v6, "")}
	tests := map[string]struct {
		in   string
		want List
		err  string
	}{
		"nothing": {},
		"PortSentry 2": {
			in:   bytes4 + bytes6,
			want: List{Format: conf.BanFilePortSentry2, Blocked: bare(v4, v6)},
		},
		"PortSentry 2, with duplicates": {
			in:   bytes4 + bytes6 + bytes4 + bytes6,
			want: List{Format: conf.BanFilePortSentry2, Blocked: bare(v4, v6)},
		},
		"PortSentry 2, a mapped address": {
			in:   family(10) + strings.Repeat("\x00", 10) + "\xff\xff\xcb\x00\x71\x07" + bytes4,
			want: List{Format: conf.BanFilePortSentry2, Blocked: bare(v4)},
		},
		"PortSentry 2, torn in the address": {
			in:   bytes6 + bytes4[:5],
			want: List{Format: conf.BanFilePortSentry2, Blocked: bare(v6)},
			err:  "ends in the middle of a record",
		},
		"PortSentry 2, torn in the family": {
			in:   bytes4 + bytes6[:1],
			want: List{Format: conf.BanFilePortSentry2, Blocked: bare(v4)},
			err:  "ends in the middle of a record",
		},
		"PortSentry 2, an unknown family": {
			in:   bytes4 + family(7) + bytes6,
			want: List{Format: conf.BanFilePortSentry2, Blocked: bare(v4)},
			err:  "unknown address family 7",
		},
		"PortSentry 1.2": {
			in:   line4 + line6,
			want: List{Format: conf.BanFilePortSentry1, Blocked: full},
		},
		"PortSentry 1.2, as an editor leaves it": {
			in:   "\n" + line4 + "\r\n" + strings.TrimSuffix(line6, "\n"),
			want: List{Format: conf.BanFilePortSentry1, Blocked: full},
		},
		"PortSentry 1.2, with duplicates": {
			in:   line4 + line6 + line4,
			want: List{Format: conf.BanFilePortSentry1, Blocked: full},
		},
		"PortSentry 1.2, with other lines": {
			in:   "# ours\n" + line4 + strings.Repeat("x", maxLine) + line6 + line6 + line4[:50],
			want: List{Format: conf.BanFilePortSentry1, Blocked: full},
			err:  "3 lines are no records of PortSentry 1.2",
		},
		"PortSentry 1.2, torn": {
			in:   line4 + line6[:50],
			want: List{Format: conf.BanFilePortSentry1, Blocked: full[:1]},
			err:  "a line is no record of PortSentry 1.2",
		},
		"a text": {
			in:  "sshd: 203.0.113.7\n",
			err: "neither a list of PortSentry 2 nor one of PortSentry 1.2",
		},
		"zeros": {
			in:  strings.Repeat("\x00", 18),
			err: "neither a list of PortSentry 2 nor one of PortSentry 1.2",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Read(strings.NewReader(test.in))
			if diff := cmp.Diff(test.want, got, cmp.Comparer(sameAddr)); diff != "" {
				t.Errorf("Read(%q) (-want +got)\n%s", test.in, diff)
			}
			if errText(err) != test.err {
				t.Errorf("Read(%q): %v, want %q", test.in, err, test.err)
			}
		})
	}
}

func sameAddr(a, b netip.Addr) bool { return a == b }

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestReadIsBounded(t *testing.T) {
	if _, err := Read(endless{}); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("Read of an endless list: %v, want an error that names the limit", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestAppend(t *testing.T) {
	mapped := netip.MustParseAddr("::ffff:203.0.113.7")
	tests := map[string]struct {
		format conf.BanFileFormat
		source netip.Addr
		want   string
	}{
		"PortSentry 2, IPv4":        {conf.BanFilePortSentry2, v4, bytes4},
		"PortSentry 2, IPv6":        {conf.BanFilePortSentry2, v6, bytes6},
		"PortSentry 2, mapped IPv4": {conf.BanFilePortSentry2, mapped, bytes4},
		"PortSentry 1.2, IPv6":      {conf.BanFilePortSentry1, v6, line6},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := blocked(test.source, "")
			if got := string(Append(nil, test.format, &b)); got != test.want {
				t.Errorf("Append = %q, want %q", got, test.want)
			}
		})
	}
}

// fuzzRoundTrip checks that what is read from a list, written in its format, is
// read again as the same.
func fuzzRoundTrip(f *testing.F, format conf.BanFileFormat) {
	f.Fuzz(func(t *testing.T, data []byte) {
		list, _ := Read(bytes.NewReader(data))
		if list.Format != format {
			return
		}
		var written []byte
		for i := range list.Blocked {
			written = Append(written, format, &list.Blocked[i])
		}
		again, err := Read(bytes.NewReader(written))
		if err != nil {
			t.Fatalf("%q, written: %q, read: %v", data, written, err)
		}
		if diff := cmp.Diff(list, again, cmp.Comparer(sameAddr)); diff != "" {
			t.Fatalf("%q, written and read (-first +again)\n%s", data, diff)
		}
	})
}

func FuzzPortSentry2(f *testing.F) {
	for _, list := range []string{bytes4, bytes6 + bytes4, bytes4 + bytes6[:7], bytes4 + family(7), ""} {
		f.Add([]byte(list))
	}
	fuzzRoundTrip(f, conf.BanFilePortSentry2)
}

func FuzzPortSentry1(f *testing.F) {
	for _, list := range []string{line4, line6 + line4, "\n" + line4 + "x\r\n" + line6[:60], line4[:len(line4)-1]} {
		f.Add([]byte(list))
	}
	fuzzRoundTrip(f, conf.BanFilePortSentry1)
}
