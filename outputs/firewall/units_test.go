package firewall

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

func TestSettings(t *testing.T) {
	tests := map[string]struct {
		in      string
		faults  []string // their keys
		hook    string
		table   string
		prio    int32
		family  nftables.TableFamily
		keep    bool
		setOnly bool
	}{
		"none":                    {in: `{}`, hook: "prerouting", table: "portsnare", prio: -450, family: nftables.TableFamilyINet},
		"input":                   {in: `{"hook": "input"}`, hook: "input", table: "portsnare", prio: -10, family: nftables.TableFamilyINet},
		"priority":                {in: `{"priority": 5}`, hook: "prerouting", table: "portsnare", prio: 5, family: nftables.TableFamilyINet},
		"keep":                    {in: `{"keep": true}`, hook: "prerouting", table: "portsnare", prio: -450, family: nftables.TableFamilyINet, keep: true},
		"own sets":                {in: `{"sets_only": true, "table": "ip6 guard"}`, hook: "prerouting", table: "guard", prio: -450, family: nftables.TableFamilyIPv6, setOnly: true},
		"unknown key":             {in: `{"tabel": "x"}`, faults: []string{"tabel"}},
		"wrong type":              {in: `{"keep": "yes"}`, faults: []string{"keep"}},
		"several faults":          {in: `{"backend": "pf", "hook": "output"}`, faults: []string{"backend", "hook"}},
		"own sets, but no table":  {in: `{"sets_only": true}`, faults: []string{"table"}},
		"our table in ip":         {in: `{"table": "ip guard"}`, faults: []string{"table"}},
		"unknown family":          {in: `{"table": "ipx guard"}`, faults: []string{"table"}},
		"name that is none":       {in: `{"table": "a;b"}`, faults: []string{"table"}},
		"ipset with a priority":   {in: `{"backend": "ipset", "priority": 1}`, faults: []string{"priority"}},
		"ipset with a table":      {in: `{"backend": "ipset", "table": "guard"}`, faults: []string{"table"}},
		"priority out of 32 bits": {in: `{"priority": 3000000000}`, faults: []string{"priority"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := readSettings(outputapi.Configuration{Settings: json.RawMessage(test.in)})
			var keys []string
			if faults, ok := errors.AsType[outputapi.Faults](err); ok {
				for _, f := range faults {
					keys = append(keys, f.Key)
				}
			}
			if diff := cmp.Diff(test.faults, keys); diff != "" || (err != nil) != (test.faults != nil) {
				t.Fatalf("%s: faults (-want +got):\n%s%v", test.in, diff, err)
			}
			if err != nil {
				return
			}
			if s.Hook != test.hook || s.table.Name != test.table || *s.Priority != test.prio ||
				s.table.Family != test.family || s.Keep != test.keep || s.SetsOnly != test.setOnly {
				t.Errorf("%s: got %+v with priority %d, want %+v", test.in, s, *s.Priority, test)
			}
		})
	}
}

func TestBansBeforeSettings(t *testing.T) {
	m := new(Module)
	if _, err := m.SetBans(t.Context(), nil); !errors.Is(err, errNotConfigured) {
		t.Errorf("SetBans: %v, want %v", err, errNotConfigured)
	}
	if _, err := m.ChangeBans(t.Context(), nil, nil); !errors.Is(err, errNotConfigured) {
		t.Errorf("ChangeBans: %v, want %v", err, errNotConfigured)
	}
	if err := m.Flush(t.Context()); err != nil {
		t.Errorf("Flush: %v", err)
	}
}

func TestRefusedBans(t *testing.T) {
	m := configured(t, `{"backend": "nftables"}`)
	bans := []detector.Ban{
		{},
		{Source: netip.MustParsePrefix("0.0.0.0/0")},
		{Source: netip.MustParsePrefix("::ffff:0.0.0.0/96")},
		{Source: netip.MustParsePrefix("192.0.2.1/32")},
		{Source: netip.MustParsePrefix("::/0")},
	}
	want := []error{errNoSource, errEverybody, errEverybody, nil, errEverybody}
	for name, call := range map[string]func() ([]outputapi.Result, error){
		"SetBans":    func() ([]outputapi.Result, error) { return m.SetBans(t.Context(), bans) },
		"ChangeBans": func() ([]outputapi.Result, error) { return m.ChangeBans(t.Context(), bans, bans) },
	} {
		results, err := call()
		if err != nil || len(results) != len(bans) {
			t.Fatalf("%s: %d results, %v", name, len(results), err)
		}
		for i, r := range results {
			if !errors.Is(r.Err, want[i]) {
				t.Errorf("%s: ban of %v: %v, want %v", name, bans[i].Source, r.Err, want[i])
			}
		}
		checkKernel(t, readNFT(t, "inet portsnare"), listOf(bans[3:4]))
	}
}

func TestCheckChangesNothing(t *testing.T) {
	for name, v := range variants {
		if v.before != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			before := sh(t, "nft list ruleset 2>/dev/null; ipset save")
			err := new(Module).Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(v.settings), Check: true})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, sh(t, "nft list ruleset 2>/dev/null; ipset save")); diff != "" {
				t.Errorf("the check changed the firewall (-before +after):\n%s", diff)
			}
		})
	}
}

func TestErrorsNameTheRemedy(t *testing.T) {
	dirs := programDirs
	t.Cleanup(func() { programDirs = dirs })
	tests := map[string]struct {
		settings string
		prepare  func(t *testing.T)
		want     []string
	}{
		"no capability": {
			settings: `{}`,
			prepare:  withoutCapabilities,
			want:     []string{"net_admin"},
		},
		"no ipset": {
			settings: `{"backend": "ipset"}`,
			prepare:  func(t *testing.T) { programDirs = []string{t.TempDir()} },
			want:     []string{"ipset is not installed", "apt-get install ipset"},
		},
		"no sets": {
			settings: `{"sets_only": true, "table": "inet theirs"}`,
			want:     []string{"table inet theirs has no set banned4:", "`set banned6_nets { type ipv6_addr; flags interval, timeout; }`"},
		},
		"set of another kind": {
			settings: `{"sets_only": true, "table": "inet theirs"}`,
			prepare: func(t *testing.T) {
				sh(t, "nft 'table inet theirs { set banned4 { type ipv4_addr; }; }'")
				t.Cleanup(func() { sh(t, "nft delete table inet theirs") })
			},
			want: []string{"set banned4 in table inet theirs takes no timeouts: declare it as `set banned4 { type ipv4_addr; flags timeout; }`"},
		},
		"no sets of ipset": {
			settings: `{"backend": "ipset", "sets_only": true}`,
			want:     []string{"`ipset create portsnare4 hash:net family inet maxelem 1048576 timeout 0`"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			programDirs = dirs
			if test.prepare != nil {
				test.prepare(t)
			}
			err := new(Module).Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(test.settings)})
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
		})
	}
}

// withoutCapabilities takes the capabilities of the test's thread, which ends with
// the test.
func withoutCapabilities(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
}

func TestComplaints(t *testing.T) {
	tests := map[string]struct {
		stderr string
		want   string
	}{
		"capability": {"ipset v7.17: Kernel error received: Operation not permitted\n", "ipset: ipset v7.17: Kernel error received: Operation not permitted: grant the module the capability net_admin"},
		"module":     {"ipset v7.17: Cannot open session to kernel.\n", "ipset: ipset v7.17: Cannot open session to kernel.: the kernel lacks ipset; run \"modprobe ip_set\""},
		"raw socket": {"Can't open socket to ipset.\n", "ipset: Can't open socket to ipset.: grant the module the capability net_raw"},
		"lock file":  {"Fatal: can't open lock file /run/xtables.lock: Permission denied\n", "ipset: Fatal: can't open lock file /run/xtables.lock: Permission denied: let the module's user write that file, or take iptables-nft (update-alternatives --config iptables)"},
		"other":      {"ipset v7.17: The set with the given name does not exist\n", "ipset: exit status 1: ipset v7.17: The set with the given name does not exist"},
		"long":       {strings.Repeat("x", 2*maxComplaint), "ipset: exit status 1: " + strings.Repeat("x", maxComplaint)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var c complaint
			for _, b := range []byte(test.stderr) { // in pieces
				if n, err := c.Write([]byte{b}); n != 1 || err != nil {
					t.Fatalf("Write returned %d, %v", n, err)
				}
			}
			if got := c.explain("ipset", errors.New("exit status 1")).Error(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestFlatten(t *testing.T) {
	hour := func(n int) time.Time { return time.Unix(0, 0).Add(time.Duration(n) * time.Hour) }
	never := time.Time{}
	tests := map[string]struct {
		bans map[string]time.Time
		want map[string]time.Time
	}{
		"nothing": {},
		"side by side": {
			bans: map[string]time.Time{"192.0.2.0/25": hour(1), "192.0.2.128/25": hour(1)},
			want: map[string]time.Time{"192.0.2.0-192.0.2.127": hour(1), "192.0.2.128-192.0.2.255": hour(1)},
		},
		"inner ends first": {
			bans: map[string]time.Time{"192.0.2.0/24": hour(2), "192.0.2.64/26": hour(1)},
			want: map[string]time.Time{"192.0.2.0-192.0.2.255": hour(2)},
		},
		"outer ends first": {
			bans: map[string]time.Time{"192.0.2.0/24": hour(1), "192.0.2.64/26": never},
			want: map[string]time.Time{"192.0.2.0-192.0.2.63": hour(1), "192.0.2.64-192.0.2.127": never, "192.0.2.128-192.0.2.255": hour(1)},
		},
		"inner at both edges": {
			bans: map[string]time.Time{"192.0.2.0/24": hour(1), "192.0.2.0/26": hour(2), "192.0.2.192/26": hour(3)},
			want: map[string]time.Time{"192.0.2.0-192.0.2.63": hour(2), "192.0.2.64-192.0.2.191": hour(1), "192.0.2.192-192.0.2.255": hour(3)},
		},
		"first and last addresses there are": {
			bans: map[string]time.Time{"0.0.0.0/8": hour(1), "0.0.0.0/16": hour(2), "255.0.0.0/8": hour(1), "255.255.0.0/16": hour(2), "ff00::/8": hour(1)},
			want: map[string]time.Time{
				"0.0.0.0-0.0.255.255": hour(2), "0.1.0.0-0.255.255.255": hour(1),
				"255.0.0.0-255.254.255.255": hour(1), "255.255.0.0-255.255.255.255": hour(2),
				"ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": hour(1),
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bans := make(map[netip.Prefix]time.Time)
			for source, until := range test.bans {
				bans[netip.MustParsePrefix(source)] = until
			}
			got := make(map[string]time.Time)
			for s, until := range flatten(bans) {
				got[fmt.Sprintf("%v-%v", s.first, s.last)] = until
			}
			if diff := cmp.Diff(test.want, got, cmp.Transformer("empty", func(m map[string]time.Time) map[string]time.Time {
				if len(m) == 0 {
					return nil
				}
				return m
			})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestRegionsAreEnough applies random changes by regions, as a backend sees them,
// and compares with what all bans would give.
func TestRegionsAreEnough(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	now := time.Now()
	bans := newList()
	kernel := elementsOf(nil)
	for range 5000 {
		add, remove := randomBans(random, 3), randomBans(random, 3)
		var sources []netip.Prefix
		for _, b := range append(add, remove...) {
			sources = append(sources, b.Source.Masked())
		}
		regions := bans.regions(sources)
		before := elementsOf(bans.within(regions))
		for _, b := range remove {
			bans.drop(b.Source.Masked())
		}
		for _, b := range add {
			bans.put(b.Source.Masked(), b.Until)
		}
		after := elementsOf(bans.within(regions))
		for i := range kernel {
			drop, put := difference(before[i], after[i], now)
			for s := range drop {
				if _, ok := kernel[i][s]; !ok {
					t.Fatalf("%s: %v is to be deleted, but is not there", setKinds[i].name, s)
				}
				delete(kernel[i], s)
			}
			for s, until := range put {
				if _, ok := kernel[i][s]; ok {
					t.Fatalf("%s: %v is to be added, but is there", setKinds[i].name, s)
				}
				kernel[i][s] = until
			}
		}
		want := elementsOf(bans.until)
		for i := range kernel {
			if diff := cmp.Diff(fmt.Sprint(want[i]), fmt.Sprint(kernel[i])); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", setKinds[i].name, diff)
			}
		}
	}
}

func TestIPSetTimeouts(t *testing.T) {
	now := time.Now()
	tests := map[string]struct {
		until   time.Time
		want    int64
		nothing bool
	}{
		"for ever":           {time.Time{}, 0, false},
		"a moment":           {now.Add(time.Nanosecond), 1, false},
		"seconds":            {now.Add(90 * time.Second), 90, false},
		"more than it takes": {now.Add(10000 * time.Hour), 2147483, false},
		"now":                {now, 0, true},
		"past":               {now.Add(-time.Hour), 0, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := ipsetTimeout(test.until, now)
			if ok == test.nothing || ok && got != test.want {
				t.Errorf("got %d, %v; want %d, %v", got, ok, test.want, !test.nothing)
			}
		})
	}
}

func TestLongBansAreRenewed(t *testing.T) {
	bans := map[netip.Prefix]time.Time{netip.MustParsePrefix("192.0.2.1/32"): time.Now().Add(3 * maxTimeout)}
	for name, test := range map[string]struct {
		left time.Duration
		want bool
	}{
		"fresh":         {maxTimeout, true},
		"half over":     {maxTimeout/2 + time.Hour, true},
		"to be renewed": {maxTimeout/2 - time.Hour, false},
		"for ever":      {forever, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[netip.Prefix]time.Duration{netip.MustParsePrefix("192.0.2.1/32"): test.left}
			if equal(clip(bans, got), got, time.Now()) != test.want {
				t.Errorf("with %v left it is as it should be: %v, want %v", test.left, !test.want, test.want)
			}
		})
	}
}

func FuzzParseSaved(f *testing.F) {
	f.Add("add portsnare4 192.0.2.1 timeout 3599")
	f.Add("add portsnare6 2001:db8::/64 timeout 0")
	f.Add("create portsnare4 hash:net family inet hashsize 1024 maxelem 1048576 timeout 0")
	f.Fuzz(func(t *testing.T, line string) {
		got := make(map[netip.Prefix]time.Duration)
		if parseSaved(line, got) != nil {
			return
		}
		for source, left := range got {
			if !source.IsValid() || left < 0 && left != forever {
				t.Errorf("%q -> %v for %v", line, source, left)
			}
		}
	})
}

func FuzzReadSet(f *testing.F) {
	element := func(at string, flags uint32) []byte {
		value, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: netip.MustParseAddr(at).AsSlice()}})
		if err != nil {
			f.Fatal(err)
		}
		attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: unix.NFTA_SET_ELEM_KEY, Data: value},
			{Type: unix.NFTA_SET_ELEM_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flags)},
			{Type: unix.NFTA_SET_ELEM_EXPIRATION, Data: binary.BigEndian.AppendUint64(nil, 1000)},
		})
		if err != nil {
			f.Fatal(err)
		}
		return attributes
	}
	list, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_LIST_ELEM, Data: element("192.0.2.0", 0)},
		{Type: unix.NFTA_LIST_ELEM, Data: element("192.0.3.0", unix.NFT_SET_ELEM_INTERVAL_END)},
	})
	if err != nil {
		f.Fatal(err)
	}
	message, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS, Data: list}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(make([]byte, sizeofNfgenmsg), message...), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, data []byte, intervals bool) {
		r := setReader{intervals: intervals, left: make(map[span]time.Duration)}
		if r.message(netlink.Message{Data: data}) != nil {
			return
		}
		r.pair()
		for s := range r.left {
			if !s.first.IsValid() {
				t.Errorf("%x -> %v", data, s)
			}
		}
	})
}
