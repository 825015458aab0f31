package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

func TestParseModeWords(t *testing.T) {
	const all = "tcp, stcp, atcp, udp, sudp or audp"
	tests := map[string]struct {
		list string
		want []ModeWord
		err  string
	}{
		"one":               {list: "stcp", want: []ModeWord{"stcp"}},
		"two":               {list: "tcp,sudp", want: []ModeWord{"tcp", "sudp"}},
		"UDP first":         {list: "audp,atcp", want: []ModeWord{"audp", "atcp"}},
		"none":              {list: "", err: `"" is no mode; use ` + all},
		"with the dash":     {list: "-tcp", err: `"-tcp" is no mode; use ` + all},
		"a native mode":     {list: "stealth", err: `"stealth" is no mode; use ` + all},
		"twice":             {list: "tcp,tcp", err: "tcp and tcp are both for TCP; choose one"},
		"two of a protocol": {list: "tcp,audp,sudp", err: "audp and sudp are both for UDP; choose one"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			words, err := ParseModeWords(tt.list)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("ParseModeWords(%q) = %v, want %s", tt.list, err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, words); err != nil || diff != "" {
				t.Errorf("ParseModeWords(%q): %v (-want +got):\n%s", tt.list, err, diff)
			}
		})
	}
}

func TestLoadPortSentry1(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portsentry.conf")
	_, _, err := LoadPortSentry1(path, "tcp")
	fault, _ := errors.AsType[Fault](err)
	if want := "adminalert: Cannot open config file: " + path + ". Exiting"; fault.Upstream != want || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v, in PortSentry's words %q, want %q", err, fault.Upstream, want)
	}
	if faults, _ := errors.AsType[Faults](err); !faults.Unreadable() {
		t.Errorf("without a file: %v does not count as unreadable", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = LoadPortSentry1(path, "tcp")
	if faults, _ := errors.AsType[Faults](err); len(faults) == 0 || faults.Unreadable() || faults.OnlyPorts() {
		t.Errorf("an empty file: %v, want faults but not that it is unreadable or lacks ports alone", err)
	}
	if err := os.WriteFile(path, read(t, "testdata/convert/v1-debian.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, err := LoadPortSentry1(path, "stcp")
	if err != nil || c.Mode != Stealth || c.Detect.TCPPorts.Len() != 26 || c.Detect.UDPPorts.Len() != 0 {
		t.Errorf("in mode stcp: %v, mode %s with %d TCP and %d UDP ports, want stealth with 26 and 0",
			err, c.Mode, c.Detect.TCPPorts.Len(), c.Detect.UDPPorts.Len())
	}
	if err := os.WriteFile(path, []byte("TCP_PORTS=\"\"\nHISTORY_FILE=\"h\"\nIGNORE_FILE=\"i\"\nBLOCKED_FILE=\"b\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = LoadPortSentry1(path, "tcp")
	if faults, _ := errors.AsType[Faults](err); !faults.OnlyPorts() || len(faults) != 1 {
		t.Errorf("without a port: %v, want a fault of the ports alone", err)
	}
	_, _, err = LoadPortSentry1(path)
	if want := path + ": no mode; use tcp, stcp, atcp, udp, sudp or audp"; err == nil || err.Error() != want {
		t.Errorf("without a mode: %v, want %s", err, want)
	}
}

func TestPortSentry1Listed(t *testing.T) {
	const text = "IGNORE_FILE=\"i\"\nHISTORY_FILE=\"h\"\nBLOCKED_FILE=\"b\"\nTCP_PORTS=\"11,9,x,11,7\"\nUDP_PORTS=\"2,1\"\n"
	for word, want := range map[ModeWord][]uint16{"tcp": {11, 9, 11, 7}, "sudp": {2, 1}, "atcp": nil} {
		var p PortSentry1
		if _, _, err := p.dialect([]ModeWord{word}).parse("p.conf", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, p.Listed); diff != "" {
			t.Errorf("ports listed for mode %s (-want +got):\n%s", word, diff)
		}
	}
}

func TestPortSentry1LowPorts(t *testing.T) {
	const mandatory = "IGNORE_FILE=\"i\"\nHISTORY_FILE=\"h\"\nBLOCKED_FILE=\"b\"\nTCP_PORTS=\"7\"\n"
	tests := map[string]struct {
		text  string
		words []ModeWord
		want  []LowPorts
	}{
		"no advanced mode": {"", []ModeWord{"stcp"}, nil},
		"the defaults":     {"", []ModeWord{"atcp"}, []LowPorts{{Word: "atcp", Limit: 1024}}},
		"both": {
			"ADVANCED_PORTS_TCP=\"512\"\nADVANCED_EXCLUDE_TCP=\"139,113\"\nADVANCED_EXCLUDE_UDP=\"520\"\n",
			[]ModeWord{"audp", "atcp"},
			[]LowPorts{{Word: "audp", Limit: 1024, Excluded: []uint16{520}}, {Word: "atcp", Limit: 512, Excluded: []uint16{139, 113}}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var p PortSentry1
			if _, _, err := p.dialect(tt.words).parse("p.conf", []byte(mandatory+tt.text)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, p.LowPorts); diff != "" {
				t.Errorf("low ports of %q in modes %v (-want +got):\n%s", tt.text, tt.words, diff)
			}
		})
	}
}

// TestPortSentry1Idle shows which files PortSentry 1.2 starts with although it
// cannot do what they ask for, and that their native form is refused.
func TestPortSentry1Idle(t *testing.T) {
	const (
		mandatory = "IGNORE_FILE=\"i\"\nHISTORY_FILE=\"h\"\nBLOCKED_FILE=\"b\"\nTCP_PORTS=\"7\"\nSCAN_TRIGGER=\"0\"\n"
		route     = "KILL_ROUTE=\"/bin/true $TARGET$\"\n"
		command   = "KILL_RUN_CMD=\"/bin/true $TARGET$\"\n"
	)
	tests := map[string]struct {
		text string
		want string
	}{
		"report only":          {`BLOCK_TCP="0"`, ""},
		"a ban with a route":   {route + `BLOCK_TCP="1"`, ""},
		"a ban with a command": {command + `BLOCK_TCP="1"`, ""},
		"a command":            {command + `BLOCK_TCP="2"`, ""},
		"no means of a ban":    {`BLOCK_TCP="1"`, "p.conf:6: BLOCK_TCP: nothing is done without KILL_ROUTE, KILL_HOSTS_DENY or KILL_RUN_CMD"},
		"no command":           {route + `BLOCK_UDP="2"`, "p.conf:7: BLOCK_UDP: nothing is done without KILL_RUN_CMD"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var p PortSentry1
			c, warnings, err := p.dialect([]ModeWord{"tcp"}).parse("p.conf", []byte(mandatory+tt.text))
			if err != nil {
				t.Fatal(err)
			}
			_, _, nativeErr := parse("native.toml", c.AppendNative(nil))
			if tt.want == "" {
				if len(p.Idle)+len(warnings) > 0 || nativeErr != nil {
					t.Errorf("%s: %v, warnings %v, natively %v", tt.text, p.Idle, warnings, nativeErr)
				}
				return
			}
			if len(warnings) != 1 || warnings[0].String() != tt.want {
				t.Errorf("%s: warnings %v, want %s", tt.text, warnings, tt.want)
			}
			if want := tt.want + "; name one, or set this key to 0"; len(p.Idle) != 1 || p.Idle.Error() != want || nativeErr == nil {
				t.Errorf("%s: %v and natively %v, want %s and a fault", tt.text, p.Idle, nativeErr, want)
			}
		})
	}
}

func TestPortsBelow(t *testing.T) {
	tests := map[string]struct {
		limit    int
		excluded string
		want     string
	}{
		"nothing excluded":  {1024, "", "1-1023"},
		"the stock list":    {1024, "113,139", "1-112,114-138,140-1023"},
		"the first":         {10, "1", "2-9"},
		"the last":          {10, "9", "1-8"},
		"above the limit":   {10, "7,10,20", "1-6,8-9"},
		"all":               {3, "1,2", ""},
		"no port":           {0, "", ""},
		"port 0 only":       {1, "", ""},
		"every port":        {maxPort + 1, "", "1-65535"},
		"all but the edges": {maxPort + 1, "1,65535", "2-65534"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			excluded, _ := parsePorts(tt.excluded)
			if got := portsBelow(tt.limit, excluded).String(); got != tt.want {
				t.Errorf("portsBelow(%d, %s) = %s, want %s", tt.limit, tt.excluded, got, tt.want)
			}
		})
	}
}

// TestPortSentry1WatchesWhatItIsToldTo makes sure that each word leads to the
// ports of its protocol alone.
func TestPortSentry1WatchesWhatItIsToldTo(t *testing.T) {
	text := read(t, "testdata/convert/v1-debian.conf")
	for _, word := range modeWords {
		c, _, err := new(PortSentry1).dialect([]ModeWord{word}).parse("p.conf", text)
		if err != nil {
			t.Fatalf("mode %s: %v", word, err)
		}
		watched, other := c.Detect.TCPPorts, c.Detect.UDPPorts
		if word.Proto() == detector.UDP {
			watched, other = other, watched
		}
		if watched.Len() == 0 || other.Len() > 0 {
			t.Errorf("mode %s watches TCP %s and UDP %s", word, c.Detect.TCPPorts, c.Detect.UDPPorts)
		}
	}
}
