package vectorboot

import (
	"errors"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"

	"vbootfs/ggufview"
)

// Policy guards commits. The zero Policy lets everything pass.
type Policy struct {
	RejectNaN bool     // refuse NaN and infinities
	MaxChange float64  // largest change of a value, as a part of the tensor's largest magnitude; 0: any
	Allow     []string // globs (path.Match) of tensors that may change; none: all
	Forbid    []string // globs of tensors that may not
}

// ErrRefused says that a guard does not let a change pass. The text tells which
// tensor, which value and where.
var ErrRefused = errors.New("refused by policy")

// String is the policy as its file shows it.
func (p Policy) String() string {
	yes := "no"
	if p.RejectNaN {
		yes = "yes"
	}
	return fmt.Sprintf("reject_nan %s\nmax_change %g\nallow %s\nforbid %s\n",
		yes, p.MaxChange, strings.Join(p.Allow, " "), strings.Join(p.Forbid, " "))
}

// ParsePolicy reads the form that String writes; lines that are left out keep
// their zero value.
func ParsePolicy(text string) (p Policy, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if err := p.set(f[0], f[1:]); err != nil {
			return Policy{}, fmt.Errorf("policy %q: %w", strings.TrimSpace(line), err)
		}
	}
	return p, nil
}

var errPolicy = errors.New("want reject_nan yes|no, max_change NUMBER, allow GLOB..., forbid GLOB...")

func (p *Policy) set(key string, args []string) error {
	switch {
	case key == "reject_nan" && len(args) == 1 && (args[0] == "yes" || args[0] == "no"):
		p.RejectNaN = args[0] == "yes"
	case key == "max_change" && len(args) == 1:
		v, err := strconv.ParseFloat(args[0], 64)
		if err != nil || !(v >= 0) {
			return errPolicy
		}
		p.MaxChange = v
	case key == "allow", key == "forbid":
		for _, g := range args {
			if _, err := path.Match(g, ""); err != nil {
				return err
			}
		}
		if key == "allow" {
			p.Allow = args
		} else {
			p.Forbid = args
		}
	default:
		return errPolicy
	}
	return nil
}

// permits checks the name of a tensor.
func (p Policy) permits(name string) error {
	match := func(globs []string) bool {
		for _, g := range globs {
			if ok, _ := path.Match(g, name); ok {
				return true
			}
		}
		return false
	}
	if match(p.Forbid) || len(p.Allow) > 0 && !match(p.Allow) {
		return fmt.Errorf("tensor %q may not change: %w", name, ErrRefused)
	}
	return nil
}

// inspect compares the values of a tensor before and after. Types without a
// dequantiser have no values to look at.
func (p Policy) inspect(t *ggufview.Tensor, big bool, before, after ggufview.View) error {
	if !p.RejectNaN && p.MaxChange == 0 || !t.Type.CanDequantize() {
		return nil
	}
	limit := math.Inf(1)
	if p.MaxChange > 0 {
		largest, err := maxMagnitude(t, big, before)
		if err != nil {
			return err
		}
		limit = p.MaxChange * largest
	}
	at := int64(0)
	return eachPair(t, big, before, after, func(a, b float32) error {
		x := float64(b)
		if p.RejectNaN && (math.IsNaN(x) || math.IsInf(x, 0)) {
			return fmt.Errorf("tensor %q: value %v at element %d: %w", t.Name, b, at, ErrRefused)
		}
		if d := math.Abs(x - float64(a)); p.MaxChange > 0 && !(d <= limit) && a != b {
			return fmt.Errorf("tensor %q: value %v at element %d was %v, a change of more than %g: %w", t.Name, b, at, a, limit, ErrRefused)
		}
		at++
		return nil
	})
}

func maxMagnitude(t *ggufview.Tensor, big bool, v ggufview.View) (largest float64, err error) {
	err = eachPair(t, big, v, v, func(a, _ float32) error {
		if m := math.Abs(float64(a)); m > largest && !math.IsInf(m, 0) {
			largest = m
		}
		return nil
	})
	return largest, err
}

// eachPair walks two versions of a tensor as float32, some blocks at a time.
func eachPair(t *ggufview.Tensor, big bool, x, y ggufview.View, f func(a, b float32) error) error {
	block, size := t.Type.BlockElements(), t.Type.BlockBytes()
	step := max(1, 16384/block)
	raw := make([]byte, step*size)
	a, b := make([]float32, step*block), make([]float32, step*block)
	blocks := t.Bytes / int64(size)
	for done := int64(0); done < blocks; done += int64(step) {
		n := int(min(int64(step), blocks-done))
		for _, side := range []struct {
			v   ggufview.View
			dst []float32
		}{{x, a}, {y, b}} {
			if k, err := side.v.ReadAt(raw[:n*size], done*int64(size)); k < n*size {
				return err
			}
			if err := ggufview.Dequantize(t.Type, big, side.dst[:n*block], raw[:n*size]); err != nil {
				return err
			}
		}
		for i := range n * block {
			if err := f(a[i], b[i]); err != nil {
				return err
			}
		}
	}
	return nil
}
