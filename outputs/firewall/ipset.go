package firewall

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// What is made with ipset and iptables:
//
//	create portsnare4 hash:net family inet maxelem 1048576 timeout 0
//	create portsnare6 hash:net family inet6 maxelem 1048576 timeout 0
//	iptables  -t raw -I PREROUTING -m set --match-set portsnare4 src -j DROP
//	ip6tables -t raw -I PREROUTING -m set --match-set portsnare6 src -j DROP
//
// A hash:net takes hosts and prefixes, also those that lie in each other.

// A family is IPv4 or IPv6 to ipset and iptables.
type family struct {
	ipv6     bool
	set      string
	name     string // ipset's
	iptables string // the program
}

var ipsetFamilies = []family{
	{false, "portsnare4", "inet", "iptables"},
	{true, "portsnare6", "inet6", "ip6tables"},
}

const (
	// maxTimeout is the longest time that ipset takes. A ban that lasts longer
	// gets it anew before it is over.
	maxTimeout = 2147483 * time.Second

	// destroyPatience is how long a set may be in use after the last rule that
	// names it is gone: the kernel frees rules later.
	destroyPatience = 2 * time.Second

	// maxComplaint bounds what of a program's error is passed on, in bytes.
	maxComplaint = 500
)

// ipset keeps bans in sets of ipset and drops with iptables. A replacement fills
// a new set and swaps it for the old one.
type ipset struct {
	setsOnly bool
	hook     string
	suffix   string // of the names of iptables' programs
}

func newIPSet(s settings) *ipset { return &ipset{setsOnly: s.SetsOnly, hook: s.Hook} }

// check says why ipset or iptables cannot be used.
func (b *ipset) check(ctx context.Context) error {
	if err := b.run(ctx, nil, "ipset", "list", "-name"); err != nil {
		return err
	}
	if b.setsOnly {
		for _, f := range ipsetFamilies {
			if err := b.run(ctx, nil, "ipset", "list", "-terse", f.set); err != nil {
				return fmt.Errorf("%w; make it with `ipset %s`", err, f.create(f.set))
			}
		}
		return nil
	}
	var errs []error
	for _, suffix := range []string{"", "-legacy", "-nft"} {
		b.suffix = suffix
		err := b.eachRule(func(f family, table, chain string) error {
			return b.run(ctx, nil, f.iptables+suffix, "--wait", "5", "--table", table, "--list-rules", chain)
		})
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errs[0] // of the programs that the administrator has chosen
}

// eachRule calls do with each chain that is to have a rule for a family.
func (b *ipset) eachRule(do func(f family, table, chain string) error) error {
	if b.setsOnly {
		return nil
	}
	for _, f := range ipsetFamilies {
		if _, err := os.Stat("/proc/net/if_inet6"); f.ipv6 && err != nil {
			continue // the kernel has no IPv6 to keep out
		}
		table, chains := "raw", []string{"PREROUTING"}
		if b.hook == input {
			table, chains = "filter", []string{"INPUT", "FORWARD"}
		}
		for _, chain := range chains {
			if err := do(f, table, chain); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f family) create(set string) string {
	return fmt.Sprintf("create %s hash:net family %s maxelem %d timeout 0", set, f.name, maxBans)
}

// prepare makes what is missing.
func (b *ipset) prepare(ctx context.Context) error {
	if err := b.check(ctx); err != nil {
		return err
	}
	var script bytes.Buffer
	b.writeCreate(&script)
	if err := b.restore(ctx, &script); err != nil {
		return err
	}
	return b.makeRules(ctx)
}

func (b *ipset) writeCreate(script io.Writer) {
	for _, f := range ipsetFamilies {
		if !b.setsOnly {
			fmt.Fprintln(script, f.create(f.set))
		}
	}
}

// replace makes bans all that there are.
func (b *ipset) replace(ctx context.Context, bans map[netip.Prefix]time.Time) error {
	var script bytes.Buffer
	b.writeCreate(&script)
	for _, f := range ipsetFamilies {
		next := f.set + "_new"
		fmt.Fprintf(&script, "%s\nflush %s\n", f.create(next), next)
		writeAdds(&script, f, next, bans)
		fmt.Fprintf(&script, "swap %s %s\ndestroy %s\n", f.set, next, next)
	}
	if err := b.restore(ctx, &script); err != nil {
		return err
	}
	return b.makeRules(ctx)
}

// change makes after of before.
func (b *ipset) change(ctx context.Context, before, after map[netip.Prefix]time.Time) error {
	var script bytes.Buffer
	for _, f := range ipsetFamilies {
		for source := range before {
			if _, stays := after[source]; !stays && source.Addr().Is6() == f.ipv6 {
				fmt.Fprintf(&script, "del %s %v\n", f.set, source)
			}
		}
		writeAdds(&script, f, f.set, after)
	}
	return b.restore(ctx, &script)
}

// writeAdds writes commands that put the bans of a family in a set, or give them
// a new time.
func writeAdds(script io.Writer, f family, set string, bans map[netip.Prefix]time.Time) {
	now := time.Now()
	for source, until := range bans {
		if source.Addr().Is6() != f.ipv6 {
			continue
		}
		if timeout, ok := ipsetTimeout(until, now); ok {
			fmt.Fprintf(script, "add %s %v timeout %d\n", set, source, timeout)
		}
	}
}

// ipsetTimeout returns the seconds that are left, rounded up; 0 is for ever. It is
// false if there are none.
func ipsetTimeout(until, now time.Time) (int64, bool) {
	if until.IsZero() {
		return 0, true
	}
	left := min(until.Sub(now), maxTimeout)
	return int64((left + time.Second - 1) / time.Second), left > 0
}

// restore runs a script of ipset. What it adds may be there, and what it deletes
// may not.
func (b *ipset) restore(ctx context.Context, script *bytes.Buffer) error {
	if script.Len() == 0 {
		return nil
	}
	return b.run(ctx, script, "ipset", "-exist", "restore")
}

// makeRules makes the rules that are missing.
func (b *ipset) makeRules(ctx context.Context) error {
	return b.eachRule(func(f family, table, chain string) error {
		if b.hasRule(ctx, f, table, chain) {
			return nil
		}
		script := fmt.Sprintf("*%s\n-I %s %s\nCOMMIT\n", table, chain, f.rule())
		return b.run(ctx, strings.NewReader(script), f.restoreProgram(b.suffix), "--wait", "5", "--noflush")
	})
}

func (f family) restoreProgram(suffix string) string { return f.iptables + suffix + "-restore" }

func (f family) rule() string { return "-m set --match-set " + f.set + " src -j DROP" }

func (b *ipset) hasRule(ctx context.Context, f family, table, chain string) bool {
	return b.run(ctx, nil, f.iptables+b.suffix, b.ruleArgs("-C", f, table, chain)...) == nil
}

func (b *ipset) ruleArgs(command string, f family, table, chain string) []string {
	return append([]string{"--wait", "5", "-t", table, command, chain}, strings.Fields(f.rule())...)
}

// hasRules reports whether all rules are there.
func (b *ipset) hasRules(ctx context.Context) bool {
	err := b.eachRule(func(f family, table, chain string) error {
		if !b.hasRule(ctx, f, table, chain) {
			return errRuleGone
		}
		return nil
	})
	return err == nil
}

var errRuleGone = errors.New("a rule is gone")

// undisturbed reports whether the rules are there and the sets hold as many bans
// as they should. Whoever then replaces will hear why, if it cannot be helped.
func (b *ipset) undisturbed(ctx context.Context, bans map[netip.Prefix]time.Time) (bool, error) {
	if !b.hasRules(ctx) {
		return false, nil
	}
	for _, f := range ipsetFamilies {
		least, most := countBans(bans, f.ipv6)
		got, err := b.count(ctx, f)
		if ok := err == nil && least <= got && got <= most; !ok {
			return false, nil
		}
	}
	return true, nil
}

// countBans returns how many bans of a family are in force at least, and at most
// if those are that begin to lapse.
func countBans(bans map[netip.Prefix]time.Time, ipv6 bool) (least, most int) {
	now := time.Now()
	for source, until := range bans {
		if source.Addr().Is6() != ipv6 || lapsed(until, now) {
			continue
		}
		most++
		if until.IsZero() || until.Sub(now) > tolerance {
			least++
		}
	}
	return least, most
}

// count returns how many elements a set has.
func (b *ipset) count(ctx context.Context, f family) (n int, err error) {
	err = b.read(ctx, func(line string) error {
		if text, ok := strings.CutPrefix(line, "Number of entries: "); ok {
			n, err = strconv.Atoi(text)
		}
		return err
	}, "ipset", "list", "-terse", f.set)
	return n, err
}

// holds reads the sets and reports whether they hold exactly these bans, and
// whether the rules are there.
func (b *ipset) holds(ctx context.Context, bans map[netip.Prefix]time.Time) (bool, error) {
	got := make(map[netip.Prefix]time.Duration)
	enter := func(line string) error { return parseSaved(line, got) }
	for _, f := range ipsetFamilies {
		if b.read(ctx, enter, "ipset", "save", f.set) != nil { // it is gone, or holds something else
			return false, ctx.Err()
		}
	}
	return equal(clip(bans, got), got, time.Now()) && b.hasRules(ctx), nil
}

// clip returns bans, with those that last longer than ipset can tell ending when
// the set says, as long as half of that is left.
func clip(bans map[netip.Prefix]time.Time, got map[netip.Prefix]time.Duration) map[netip.Prefix]time.Time {
	now := time.Now()
	clipped := make(map[netip.Prefix]time.Time, len(bans))
	for source, until := range bans {
		if left := got[source]; !until.IsZero() && until.Sub(now) > left && left > maxTimeout/2 {
			until = now.Add(left)
		}
		clipped[source] = until
	}
	return clipped
}

// parseSaved enters an element of "ipset save" in got.
func parseSaved(line string, got map[netip.Prefix]time.Duration) error {
	fields := strings.Fields(line)
	if len(fields) < 3 || fields[0] != "add" {
		return nil
	}
	source, err := netip.ParsePrefix(fields[2])
	if err != nil {
		addr, err := netip.ParseAddr(fields[2])
		if err != nil {
			return err
		}
		source = netip.PrefixFrom(addr, addr.BitLen())
	}
	got[source] = forever
	if len(fields) == 5 && fields[3] == "timeout" && fields[4] != "0" {
		seconds, err := strconv.ParseUint(fields[4], 10, 32)
		if err != nil {
			return err
		}
		got[source] = time.Duration(seconds) * time.Second
	}
	return nil
}

// remove takes away all that is ours.
func (b *ipset) remove(ctx context.Context) error {
	if b.setsOnly {
		return errors.Join(
			b.run(ctx, nil, "ipset", "flush", ipsetFamilies[0].set),
			b.run(ctx, nil, "ipset", "flush", ipsetFamilies[1].set))
	}
	err := b.eachRule(func(f family, table, chain string) error {
		for b.hasRule(ctx, f, table, chain) {
			if err := b.run(ctx, nil, f.iptables+b.suffix, b.ruleArgs("-D", f, table, chain)...); err != nil {
				return err
			}
		}
		return nil
	})
	for _, f := range ipsetFamilies {
		err = errors.Join(err, b.destroy(ctx, f.set))
	}
	return err
}

// destroy destroys a set that no rule names any more, if it is there.
func (b *ipset) destroy(ctx context.Context, set string) error {
	ctx, cancel := context.WithTimeout(ctx, destroyPatience)
	defer cancel()
	for {
		err := b.run(ctx, nil, "ipset", "destroy", set)
		switch {
		case err == nil, b.run(ctx, nil, "ipset", "list", "-terse", set) != nil && ctx.Err() == nil:
			return nil
		case ctx.Err() != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(destroyPatience / 100):
		}
	}
}

func (b *ipset) watch(context.Context, func()) error { return nil }

func (b *ipset) close() error { return nil }

// programDirs are where programs are looked for: a module has no environment.
var programDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// command returns a command for a program of ipset or iptables.
func command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	for _, dir := range programDirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			cmd := exec.CommandContext(ctx, path, args...)
			cmd.Env = []string{"LC_ALL=C"}
			return cmd, nil
		}
	}
	pkg := "iptables"
	if name == "ipset" {
		pkg = name
	}
	return nil, fmt.Errorf("%s is not installed: run \"apt-get install %s\"", name, pkg)
}

// run runs a program and returns what it complains about.
func (b *ipset) run(ctx context.Context, stdin io.Reader, name string, args ...string) error {
	cmd, err := command(ctx, name, args...)
	if err != nil {
		return err
	}
	var stderr complaint
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	return stderr.explain(name, cmd.Run())
}

// read runs a program and calls visit with the lines that it prints.
func (b *ipset) read(ctx context.Context, visit func(line string) error, name string, args ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, err := command(ctx, name, args...)
	if err != nil {
		return err
	}
	var stderr complaint
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(stdout)
	for err == nil && lines.Scan() {
		err = visit(lines.Text())
	}
	if err := errors.Join(err, lines.Err()); err != nil {
		cancel() // nobody reads any more
		return errors.Join(fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err), ignoreExit(cmd.Wait()))
	}
	return stderr.explain(name, cmd.Wait())
}

// ignoreExit returns err unless it is that of a program which we have ended.
func ignoreExit(err error) error {
	if errors.As(err, new(*exec.ExitError)) {
		return nil
	}
	return err
}

// A complaint is the beginning of what a program prints to its standard error.
type complaint struct{ text []byte }

func (c *complaint) Write(p []byte) (int, error) {
	c.text = append(c.text, p[:min(len(p), maxComplaint-len(c.text))]...)
	return len(p), nil
}

// explain adds the complaint, and what can be done about it, to err.
func (c *complaint) explain(name string, err error) error {
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(string(c.text)), " ")
	for _, r := range remedies {
		if strings.Contains(text, r.sign) {
			return fmt.Errorf("%s: %s: %w", name, text, r.remedy)
		}
	}
	return fmt.Errorf("%s: %w: %s", name, err, text)
}

// remedies are for what the programs complain about.
var remedies = []struct {
	sign   string
	remedy error
}{
	{"Cannot open session to kernel", errors.New("the kernel lacks ipset; run \"modprobe ip_set\"")},
	{"open socket to ipset", errors.New("grant the module the capability net_raw")},
	{"lock file", errors.New("let the module's user write that file, or take iptables-nft (update-alternatives --config iptables)")},
	{"Operation not permitted", errNoCapability},
	{"Permission denied", errNoCapability},
	{"must be root", errNoCapability},
}
