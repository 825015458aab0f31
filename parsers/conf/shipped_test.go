package conf

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The files that are installed for who knows PortSentry.
const (
	shippedConfig = "../../packaging/deb/portsentry.conf"
	shippedIgnore = "../../packaging/deb/portsentry.ignore"
)

// shippedSetting is a setting in the shipped file, behind # if it is not in force.
var shippedSetting = regexp.MustCompile(`(?m)^(#?)([A-Z_]+)="(.*)"$`)

// onlyInForce returns the shipped file with just those settings in force that want says.
func onlyInForce(text string, want func(number int, key string) bool) string {
	seen := make(map[string]int) // by key
	return shippedSetting.ReplaceAllStringFunc(text, func(line string) string {
		line = strings.TrimPrefix(line, "#")
		key, _, _ := strings.Cut(line, "=")
		number := seen[key]
		seen[key]++
		if want(number, key) {
			return line
		}
		return "#" + line
	})
}

// isPortList reports whether a key has one of the shipped choices of ports.
func isPortList(key string) bool { return key == "TCP_PORTS" || key == "UDP_PORTS" }

func isAdvanced(key string) bool { return strings.HasPrefix(key, "ADVANCED_") }

func TestShippedNamesEveryKey(t *testing.T) {
	got := make(map[string]bool)
	for _, setting := range shippedSetting.FindAllStringSubmatch(string(read(t, shippedConfig)), -1) {
		got[setting[2]] = true
	}
	want := slices.Concat(slices.Collect(maps.Keys(portSentryKeys)), portSentry1Ports)
	slices.Sort(want)
	if diff := cmp.Diff(slices.Compact(want), slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("keys in %s (-known +shipped)\n%s", shippedConfig, diff)
	}
}

func TestShippedAsItIs(t *testing.T) {
	text := read(t, shippedConfig)
	c, _, err := parse("portsentry.conf", text)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := [2]string{c.Detect.TCPPorts.String(), c.Detect.UDPPorts.String()}, normalPorts(t, presets["aware"]); got != want {
		t.Errorf("ports are %q, want those of aware, %q", got, want)
	}
	if c.bans() {
		t.Error("it asks for bans")
	}
	if want := []string{"/etc/portsentry/portsentry.ignore"}; !slices.Equal(c.Detect.Ignore, want) {
		t.Errorf("ignore files are %q, want %q", c.Detect.Ignore, want)
	}
}

func TestShippedChoicesOfPorts(t *testing.T) {
	text := string(read(t, shippedConfig))
	lists := make(map[string][]string) // by key, in the order of the file
	for _, setting := range shippedSetting.FindAllStringSubmatch(text, -1) {
		lists[setting[2]] = append(lists[setting[2]], setting[3])
	}
	choices := []preset{
		presets["everything"], presets["aware"], presets["bare-bones"],
		{tcp: "1-112,114-138,140-1023", udp: "1-66,68-136,139-519,521-1023"}, // of the advanced modes
	}
	if len(lists["TCP_PORTS"]) != len(choices) || len(lists["UDP_PORTS"]) != len(choices) {
		t.Fatalf("lists are %q, want %d of each", lists, len(choices))
	}
	for i, choice := range choices {
		if got := (preset{tcp: lists["TCP_PORTS"][i], udp: lists["UDP_PORTS"][i]}); got != choice {
			t.Errorf("choice %d is\n%+v, want\n%+v", i, got, choice)
		}
		chosen := onlyInForce(text, func(number int, key string) bool {
			return isPortList(key) && number == i || key == "IGNORE_FILE"
		})
		c, _, err := parse("portsentry.conf", []byte(chosen))
		if err != nil {
			t.Errorf("choice %d: %v", i, err)
			continue
		}
		if got, want := [2]string{c.Detect.TCPPorts.String(), c.Detect.UDPPorts.String()}, normalPorts(t, choice); got != want {
			t.Errorf("choice %d: ports are %q, want %q", i, got, want)
		}
	}
}

// normalPorts returns the lists of a preset as a PortSet prints them.
func normalPorts(t *testing.T, p preset) [2]string {
	t.Helper()
	var printed [2]string
	for i, list := range []string{p.tcp, p.udp} {
		ports, faults := parsePorts(list)
		if len(faults) > 0 {
			t.Fatalf("%q: %v", list, faults)
		}
		printed[i] = ports.String()
	}
	return printed
}

func TestShippedWithEverythingInForce(t *testing.T) {
	text := onlyInForce(string(read(t, shippedConfig)), func(_ int, key string) bool { return !isAdvanced(key) })
	for _, reaction := range []string{"0", "1", "2"} {
		for _, mode := range []Mode{Stealth, Trap} {
			text := strings.ReplaceAll(text, `BLOCK_TCP="0"`, `BLOCK_TCP="`+reaction+`"`)
			c, _, err := portSentry2(mode).parse("portsentry.conf", []byte(text))
			if err != nil {
				t.Errorf("BLOCK_TCP %s, mode %s: %v", reaction, mode, err)
			}
			if c.Outputs["runcmd"].Text("route") == "" || c.Outputs["hostsdeny"].Text("line") == "" || c.Trap.Banner == "" {
				t.Errorf("BLOCK_TCP %s, mode %s: %+v lacks a setting", reaction, mode, c)
			}
		}
	}
}

// TestShippedForPortSentry1 makes sure that the ranges which stand in place of
// the advanced keys are the ports that PortSentry 1.2 means by them.
func TestShippedForPortSentry1(t *testing.T) {
	text := string(read(t, shippedConfig))
	keys := onlyInForce(text, func(_ int, key string) bool { return !isPortList(key) })
	got, _, err := new(PortSentry1).dialect([]ModeWord{"atcp", "audp"}).parse("portsentry.conf", []byte(keys))
	if err != nil {
		t.Fatal(err)
	}
	ranges := onlyInForce(text, func(number int, key string) bool { return isPortList(key) && number == 3 })
	want, _, err := parse("portsentry.conf", []byte(ranges))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Detect, got.Detect, opaque, cmp.FilterPath(func(p cmp.Path) bool {
		return p.Last().String() == ".Ignore" || p.Last().String() == ".Broadcasts"
	}, cmp.Ignore())); diff != "" {
		t.Errorf("ports of the advanced modes (-ranges +keys)\n%s", diff)
	}
	if _, _, err := parse("portsentry.conf", []byte(onlyInForce(text, func(_ int, key string) bool {
		return isPortList(key) || isAdvanced(key)
	}))); err == nil {
		t.Error("PortSentry 2's form takes the advanced keys")
	}
}

func TestShippedIgnoreFile(t *testing.T) {
	set, warnings, err := LoadIgnore(shippedIgnore)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("LoadIgnore: %v, %v", warnings, err)
	}
	for address, want := range map[string]bool{"127.0.0.1": true, "127.0.1.1": true, "::1": true, "192.0.2.7": false, "2001:db8::7": false} {
		if got := set.Contains(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s is ignored: %v, want %v", address, got, want)
		}
	}
}
